"""What holds for the multiscale cell at any size, in any order and any place."""

import copy

import pytest
import torch
from hypothesis import strategies as st

from mdeq_mm.deq import StateLayout
from mdeq_mm.models import MultiscaleCell

from ...properties import BATCH_SIZES, SEEDS, STRIDES, generator_of, holds, restride

# Of one number alone, torch refuses to take the norm: two channels per group at least.
CHANNELS = [(4,), (4, 8), (4, 8, 6)]
SIZES = st.integers(1, 11)


@pytest.fixture(params=CHANNELS, ids=str, scope='module')
def cell(request):
    """A cell in float64, in training, with masks."""
    torch.manual_seed(0)
    settings = dict(num_groups=2, expansion=2, dropout=0.3)
    return MultiscaleCell(request.param, **settings).double()


def make_maps(cell, batch_size, height, width, generator):
    found = []
    for channels in cell.channels:
        shape = batch_size, channels, height, width
        found.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        height, width = (height + 1) // 2, (width + 1) // 2
    return found


MAPS = dict(batch_size=BATCH_SIZES, height=SIZES, width=SIZES, seed=SEEDS)


@holds(15, **MAPS)
def test_any_size(cell, batch_size, height, width, seed):
    """Shapes stay, twice is the same, and gradients reach every input."""
    generator = generator_of(seed)
    states = make_maps(cell, batch_size, height, width, generator)
    injections = make_maps(cell, batch_size, height, width, generator)
    for x in [*states, *injections]:
        x.requires_grad_()
    before = [x.detach().clone() for x in [*states, *injections]]
    torch.manual_seed(seed)
    frozen = cell.freeze(injections)
    with frozen:
        first = cell(states, injections)
    with frozen:
        second = cell(states, injections)
    for z, x, y in zip(states, first, second):
        assert x.shape == z.shape
        assert x.dtype == z.dtype
        assert x.isfinite().all()
        assert torch.equal(x, y)
    grads = torch.autograd.grad([x.sum() for x in first], [*states, *injections])
    for x, old, g in zip([*states, *injections], before, grads):
        assert torch.equal(x, old)
        assert g.shape == x.shape
        assert g.isfinite().all()


@holds(
    15,
    **MAPS,
    strides=st.one_of(STRIDES, st.just('channels last')),
    expanded=st.booleans(),
)
def test_any_strides(cell, batch_size, height, width, seed, strides, expanded):
    """Where the numbers lie changes nothing but the last bits."""
    generator = generator_of(seed)
    states = make_maps(cell, batch_size, height, width, generator)
    injections = make_maps(cell, batch_size, height, width, generator)
    given = [restride(x, strides) for x in injections]
    if expanded:
        shared = make_maps(cell, 1, height, width, generator)
        given = [x.expand(batch_size, *x.shape[1:]) for x in shared]
        injections = [x.contiguous() for x in given]
    with cell.freeze(injections):
        expected = cell(states, injections)
        actual = cell([restride(z, strides) for z in states], given)
    for x, y in zip(actual, expected):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


@holds(12, **MAPS, data=st.data())
def test_samples_do_not_mix(cell, batch_size, height, width, seed, data):
    """Half of the samples, in any order, come out as they do in the whole batch."""
    generator = generator_of(seed)
    states = make_maps(cell, batch_size, height, width, generator)
    injections = make_maps(cell, batch_size, height, width, generator)
    order = data.draw(st.permutations(range(batch_size)))
    rows = torch.tensor(order[: (batch_size + 1) // 2], dtype=torch.int64)
    frozen = cell.freeze(injections)
    with frozen:
        whole = cell(states, injections)
    with frozen.select(rows):
        some = cell([z[rows] for z in states], [x[rows] for x in injections])
    for x, y in zip(some, whole):
        torch.testing.assert_close(x, y[rows], rtol=0, atol=1e-9)


@holds(12, **MAPS, bad=st.sampled_from([torch.nan, torch.inf]))
def test_bad_sample(cell, batch_size, height, width, seed, bad):
    """The others are to the bit what they are without it."""
    generator = generator_of(seed)
    states = make_maps(cell, batch_size, height, width, generator)
    injections = make_maps(cell, batch_size, height, width, generator)
    with cell.freeze(injections):
        expected = cell(states, injections)
        for z in states:
            z[:1] = bad
        actual = cell(states, injections)
    for x, y in zip(actual, expected):
        assert torch.equal(x[1:], y[1:])


@holds(12, **MAPS, exponent=st.one_of(st.integers(-3, 0), st.integers(-99, 0)))
def test_single_precision(cell, batch_size, height, width, seed, exponent):
    """Against float64, down to the smallest injections."""
    narrow = copy.deepcopy(cell).float().eval()
    wide = copy.deepcopy(narrow).double()
    generator = generator_of(seed)
    states = make_maps(cell, batch_size, height + 3, width + 3, generator)
    injections = make_maps(cell, batch_size, height + 3, width + 3, generator)
    states = [z.float() for z in states]
    injections = [x.float() * 2.0**exponent for x in injections]
    with torch.no_grad():
        with narrow.freeze(injections):
            actual = narrow(states, injections)
        states, injections = ([x.double() for x in xs] for xs in (states, injections))
        with wide.freeze(injections):
            expected = wide(states, injections)
    layout = StateLayout.of(expected)
    assert {x.dtype for x in actual} == {torch.float32}
    error = (layout.pack(actual).double() - layout.pack(expected)).norm(dim=1)
    # Norms over few numbers of one value divide by little.
    assert (error <= 1e-4 * layout.pack(expected).norm(dim=1)).all()
