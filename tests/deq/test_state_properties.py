"""What holds for state layouts of any shapes."""

import math

import torch
from hypothesis import strategies as st

from mdeq_mm.deq import StateLayout

from ..properties import (
    BATCH_SIZES,
    SCALES,
    SEEDS,
    STRIDES,
    generator_of,
    holds,
    restride,
)

SHAPES = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=4
)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@holds(
    60,
    batch_size=BATCH_SIZES,
    shapes=SHAPES,
    dtype=DTYPES,
    strides=STRIDES,
    scale=SCALES,
    seed=SEEDS,
)
def test_round_trip(batch_size, shapes, dtype, strides, scale, seed):
    """The numbers come back to the bit, wherever they lie, in views of the state."""
    generator = generator_of(seed)
    features = [
        torch.randn(batch_size, *shape, generator=generator).mul(scale).to(dtype)
        for shape in shapes
    ]
    layout = StateLayout.of(features)
    state = layout.pack([restride(x, strides) for x in features])
    assert layout.numel == sum(math.prod(shape) for shape in shapes)
    assert state.shape == (batch_size, layout.numel)
    assert state.dtype == dtype
    unpacked = layout.unpack(state)
    assert len(unpacked) == len(features)
    for x, y in zip(features, unpacked):
        assert x.shape == y.shape
        assert torch.equal(x, y)
        y.zero_()
    assert not state.any()
    # Each map lies behind the one before, in the order of rows.
    expected = torch.cat(
        [x.reshape(batch_size, math.prod(x.shape[1:])) for x in features], 1
    )
    assert torch.equal(layout.pack(features), expected)


@holds(20, batch_size=BATCH_SIZES, shapes=SHAPES, seed=SEEDS)
def test_expanded_maps(batch_size, shapes, seed):
    """Maps that all samples share take part like any others."""
    generator = generator_of(seed)
    shared = [torch.randn(1, *shape, generator=generator) for shape in shapes]
    features = [x.expand(batch_size, *x.shape[1:]) for x in shared]
    layout = StateLayout.of(shared)
    state = layout.pack(features)
    assert state.shape == (batch_size, layout.numel)
    for row in state:
        assert torch.equal(row, layout.pack(shared)[0])


@holds(20, batch_size=BATCH_SIZES, shapes=SHAPES, seed=SEEDS, data=st.data())
def test_any_rows_of_a_state(batch_size, shapes, seed, data):
    """Choosing samples before packing or after is the same."""
    generator = generator_of(seed)
    features = [
        torch.randn(batch_size, *shape, generator=generator) for shape in shapes
    ]
    layout = StateLayout.of(features)
    rows = torch.tensor(
        data.draw(st.permutations(range(batch_size))), dtype=torch.int64
    )
    state = layout.pack(features)
    assert torch.equal(layout.pack([x[rows] for x in features]), state[rows])
    for x, y in zip(layout.unpack(state[rows]), features):
        assert torch.equal(x, y[rows])
