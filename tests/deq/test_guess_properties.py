"""What holds for initial guesses, of any shapes and for any order of solves."""

import copy

import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from mdeq_mm.deq import (
    InverseJacobianGuess,
    LowRankInverse,
    PreviousGuess,
    Solution,
    StateLayout,
    ZeroGuess,
)
from mdeq_mm.models import ProjectedGuess

from ..properties import (
    BATCH_SIZES,
    SCALES,
    SEEDS,
    STRIDES,
    generator_of,
    holds,
    restride,
)
from .example_guess import InjectionGuess

CHANNELS = (3, 4)
GUESSES = {
    'zero': ZeroGuess,
    'previous': PreviousGuess,
    'projected': lambda: ProjectedGuess(CHANNELS, kernel_size=3),
    'injection': InjectionGuess,
}
SIZES = st.integers(1, 7)


@pytest.fixture(params=GUESSES)
def make(request):
    """Makes the guess, with the same parameters each time."""

    def make():
        torch.manual_seed(0)
        return GUESSES[request.param]().eval()

    return make


def make_maps(batch_size, height, width, seed):
    generator, found = generator_of(seed), []
    for channels in CHANNELS:
        shape = batch_size, channels, height, width
        found.append(torch.randn(shape, generator=generator))
        height, width = (height + 1) // 2, (width + 1) // 2
    return found


@holds(
    20,
    batch_size=BATCH_SIZES,
    height=SIZES,
    width=SIZES,
    seed=SEEDS,
    strides=st.one_of(STRIDES, st.just('channels last')),
    of_state=st.sampled_from([torch.float32, torch.float64]),
    of_injections=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    scale=SCALES,
)
def test_what_it_returns(
    make, batch_size, height, width, seed, strides, of_state, of_injections, scale
):
    """A finite state of the dtype asked for; samples are each by themselves."""
    guess = make().to(of_injections)
    injections = [
        restride((x * scale).to(of_injections), strides)
        for x in make_maps(batch_size, height, width, seed)
    ]
    before = [x.clone() for x in injections]
    layout = StateLayout.of(injections)
    with torch.no_grad():
        state = guess(injections, layout, of_state)
        assert state.shape == (batch_size, layout.numel)
        assert state.dtype == of_state
        assert state.device == injections[0].device
        assert state.isfinite().all()
        assert all(torch.equal(x, y) for x, y in zip(injections, before))
        for row in range(batch_size):
            guess.reset()
            alone = guess([x[row : row + 1] for x in injections], layout, of_state)
            eps = torch.finfo(of_injections).eps
            bound = 50 * eps * (1 + state[row].abs().max())
            assert ((alone[0] - state[row]).abs() <= bound).all()


@holds(15, batch_size=BATCH_SIZES, height=SIZES, width=SIZES, seed=SEEDS, scale=SCALES)
def test_projection(batch_size, height, width, seed, scale):
    """Against averages and convolutions in float64, at any scale."""
    torch.manual_seed(0)
    guess = ProjectedGuess(CHANNELS, kernel_size=3).eval()
    wide = copy.deepcopy(guess).double()
    injections = [x * scale for x in make_maps(batch_size, height, width, seed)]
    layout = StateLayout.of(injections)
    actual = guess(injections, layout, torch.float32)
    expected = []
    for conv, (_, rows, columns) in zip(wide.convs, layout.shapes):
        means = torch.empty(batch_size, CHANNELS[0], rows, columns).double()
        for row in range(rows):
            for column in range(columns):
                window = injections[0].double()[
                    :,
                    :,
                    row * height // rows : -(-(row + 1) * height // rows),
                    column * width // columns : -(-(column + 1) * width // columns),
                ]
                means[:, :, row, column] = window.mean((2, 3))
        expected.append(F.conv2d(means, conv.weight, conv.bias, padding=1))
    error = (actual.double() - layout.pack(expected)).norm(dim=1)
    size = (scale * injections[0].new_ones(()) + 1) * layout.numel**0.5
    assert (error <= 1e-5 * size).all()


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2]),
        st.sampled_from([1, 2]),
        st.sampled_from([torch.float32, torch.float64]),
        st.sampled_from(['solve', 'solve', 'solve', 'train', 'grad', 'reset']),
    ),
    max_size=8,
)


@holds(60, steps=STEPS, seed=SEEDS)
def test_previous_guess_of_any_history(steps, seed):
    """The last solve counts where it was of the same kind; nothing else does."""
    guess, generator = PreviousGuess().eval(), generator_of(seed)
    kept = None
    for batch_size, size, dtype, what in steps:
        injections = [torch.randn(batch_size, 3, size, size, generator=generator)]
        layout = StateLayout.of(injections)
        key = batch_size, size, dtype
        guess.train(what == 'train')
        if what in ('train', 'reset'):
            kept = None
        if what == 'reset':
            guess.reset()
        with torch.set_grad_enabled(what in ('train', 'grad')):
            state = guess(injections, layout, dtype)
            if what != 'grad' and kept is not None and kept[0] == key:
                assert torch.equal(state, kept[1])
            else:
                assert not state.any()
            assert state.shape == (batch_size, layout.numel)
            assert state.dtype == dtype
            found = torch.randn(state.shape, generator=generator).to(dtype)
            expected = found.clone()
            guess.update(found, layout)
            # What the layers behind do to it is not seen.
            found.fill_(torch.nan)
        if what in ('solve', 'reset'):
            kept = key, expected


@holds(
    40,
    batch_size=BATCH_SIZES,
    size=st.sampled_from([1, 3, 8, 19]),
    rank=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    history=st.sampled_from([None, torch.bfloat16]),
    scale=SCALES,
    broken=st.booleans(),
    seed=SEEDS,
)
def test_inverse_jacobian(batch_size, size, rank, dtype, history, scale, broken, seed):
    """Against the matrix written out in float64, at any scale of what it meets."""
    generator = generator_of(seed)
    basis = torch.randn(batch_size, rank, size, generator=generator)
    basis = basis.to(history or dtype)
    core = torch.randn(batch_size, rank, rank, generator=generator).double()
    x = (torch.randn(batch_size, size, generator=generator) * scale).to(dtype)
    inverse = LowRankInverse(basis, core)
    wide = basis.double()
    matrix = wide.mT @ core @ wide - torch.eye(size, dtype=torch.float64)
    norms = wide.norm(dim=(1, 2)) ** 2 * core.norm(dim=(1, 2)) + 1
    bound = 4 * (size + rank + 2) * torch.finfo(dtype).eps * norms
    bound = bound * x.double().norm(dim=1)
    before = x.clone()
    for product, dense in (
        (inverse.apply, matrix),
        (inverse.apply_transpose, matrix.mT),
    ):
        expected = (dense @ x.double().unsqueeze(2)).squeeze(2)
        assert product(x).dtype == dtype
        assert ((product(x).double() - expected).norm(dim=1) <= bound).all()
    assert torch.equal(x, before)

    if broken and rank:
        core[:1] = torch.nan
    nothing = x.new_zeros(batch_size)
    solution = Solution(x, nothing, nothing, nothing, nothing, inverse)
    start = InverseJacobianGuess().bind(solution)(x)
    rows = slice(1, None) if broken and rank else slice(None)
    assert torch.equal(start[rows], -inverse.apply_transpose(x)[rows])
    assert start.isfinite().all()
    if broken and rank:
        assert torch.equal(start[:1], x[:1])
