"""What every initial guess promises. A new one is one line in its table."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from mdeq_mm.deq import (
    AdjointGuess,
    BroydenSolver,
    EquilibriumLayer,
    GradientGuess,
    ImplicitGradient,
    InitialGuess,
    InverseJacobianGuess,
    LearnedGuess,
    StateLayout,
)
from mdeq_mm.deq.builder import build
from mdeq_mm.models import ProjectedGuess

from .example_cell import PerceptronCell
from .example_guess import InjectionGuess

CHANNELS = (3, 4)
GUESSES = {
    'zero': dict(type='ZeroGuess'),
    'previous': dict(type='PreviousGuess'),
    'projected': dict(type=ProjectedGuess, channels=CHANNELS, kernel_size=3),
    'injection': dict(type=InjectionGuess),
}
ADJOINT_GUESSES = {
    'gradient': GradientGuess,
    'inverse': InverseJacobianGuess,
}
SOLVER = BroydenSolver(max_evals=60, tol=1e-5)


@pytest.fixture
def injections():
    return torch.randn(2, 3, 4, 6), torch.randn(2, 4, 2, 3)


def make_layer(guess, gradient=None):
    """A layer with the same weights whatever the guess."""
    torch.manual_seed(1)
    cell = PerceptronCell(CHANNELS, hidden=8)
    for name, parameter in cell.named_parameters():
        if name.endswith('original0'):
            # The norms of the weights: small ones make a contraction.
            nn.init.constant_(parameter, 0.4)
    gradient = gradient or ImplicitGradient(SOLVER)
    return EquilibriumLayer(cell, SOLVER, gradient, 3, initial_guess=guess)


@pytest.fixture(params=GUESSES)
def layer(request):
    return make_layer(GUESSES[request.param])


@pytest.fixture
def from_zero():
    return make_layer(dict(type='ZeroGuess'))


def supervised(layer):
    guess = layer.initial_guess
    return guess.supervision() if isinstance(guess, LearnedGuess) else nullcontext()


class TestEveryInitialGuess:
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize('of_injections', [torch.float32, torch.bfloat16])
    def test_what_it_returns(self, layer, injections, dtype, of_injections):
        guess = layer.initial_guess.eval().to(of_injections)
        injections = [x.to(of_injections) for x in injections]
        layout = StateLayout.of(injections)
        with torch.no_grad():
            for _ in range(2):
                state = guess(injections, layout, dtype)
                assert state.shape == (2, layout.numel)
                assert state.dtype == dtype
                assert state.device == injections[0].device
                assert state.isfinite().all()
                guess.update(torch.randn_like(state), layout)

    def test_same_equilibrium_as_from_zero(self, layer, from_zero, injections):
        with torch.no_grad():
            expected = from_zero.eval()(injections).features
            for _ in range(2):
                features, forward_pass = layer.eval()(injections)
                assert forward_pass.solution.converged.all()
                for actual, e in zip(features, expected):
                    torch.testing.assert_close(actual, e, rtol=0, atol=1e-4)

    def test_same_gradient_as_from_zero(self, layer, from_zero, injections):
        gradients = []
        for model in (from_zero, layer):
            with supervised(model):
                features, _ = model(injections)
            sum(z.square().sum() for z in features).backward()
            gradients.append([p.grad for p in model.cell.parameters()])
            # It is never differentiated through the solve.
            assert all(p.grad is None for p in model.initial_guess.parameters())
        for expected, actual in zip(*gradients):
            torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)

    def test_unrolled_mode_does_not_start_from_it(self, layer, from_zero, injections):
        layer.mode, from_zero.mode = layer.unrolled, from_zero.unrolled
        for grad in (False, True):
            with torch.set_grad_enabled(grad), supervised(layer):
                features, _ = layer(injections)
            for actual, expected in zip(features, from_zero(injections).features):
                assert torch.equal(actual, expected)

    def test_deepcopy(self, layer, injections):
        layer.eval()
        with torch.no_grad():
            layer(injections)
            twin = copy.deepcopy(layer)
            for actual, expected in zip(
                twin(injections).features, layer(injections).features
            ):
                assert torch.equal(actual, expected)

    def test_state_dict_has_its_parameters_alone(self, layer, from_zero, injections):
        with torch.no_grad():
            layer.eval()(injections)
        parameters = dict(layer.initial_guess.named_parameters())
        assert set(layer.state_dict()) == {
            *from_zero.state_dict(),
            *(f'initial_guess.{name}' for name in parameters),
        }

    def test_float64(self, layer, injections):
        layer.double()
        injections = [x.double() for x in injections]
        with supervised(layer):
            features, forward_pass = layer(injections)
        assert {z.dtype for z in features} == {torch.float64}
        assert forward_pass.guess.dtype == torch.float64
        assert forward_pass.solution.converged.all()

    def test_autocast(self, layer, from_zero, injections):
        with torch.autocast('cpu', torch.bfloat16), supervised(layer):
            features, forward_pass = layer(injections)
            expected = from_zero(injections).features
        assert forward_pass.guess.dtype == torch.float32
        for actual, e in zip(features, expected):
            assert actual.dtype == torch.float32
            assert (actual - e).norm() <= 0.02 * e.norm()

    def test_reset(self, layer, injections):
        layer.eval()
        with torch.no_grad():
            first = layer(injections).features
            layer(injections)
            layer.initial_guess.reset()
            for actual, expected in zip(layer(injections).features, first):
                assert torch.equal(actual, expected)

    def test_other_batch_sizes_in_between(self, layer, injections):
        layer.eval()
        for size in (2, 1, 2):
            with torch.no_grad():
                features, _ = layer([x[:size] for x in injections])
            assert {len(z) for z in features} == {size}


@pytest.fixture(params=ADJOINT_GUESSES)
def adjoint_guess(request):
    return ADJOINT_GUESSES[request.param]


class TestEveryAdjointGuess:
    def test_start(self, adjoint_guess):
        """A state per sample, and of the solution no more is kept than it needs."""
        matrix = 0.2 * torch.randn(4, 4)
        gc.collect()
        gc.disable()
        try:
            solution = SOLVER.solve(lambda z: z @ matrix + 1, torch.zeros(3, 4))
            start = adjoint_guess().bind(solution)
            alive = weakref.ref(solution), weakref.ref(solution.state)
            del solution
            assert [reference() for reference in alive] == [None, None]
        finally:
            gc.enable()
        unit = nn.functional.normalize(torch.randn(3, 4))
        before = unit.clone()
        y = start(unit)
        assert y.shape == unit.shape
        assert y.dtype == unit.dtype
        assert torch.equal(unit, before)
        for row in range(3):
            others = unit.clone()
            others[row] = 0
            kept = [k for k in range(3) if k != row]
            assert torch.equal(start(others)[kept], y[kept])

    def test_same_gradient(self, adjoint_guess, injections):
        gradients = []
        for guess in (GradientGuess(), adjoint_guess()):
            layer = make_layer(
                dict(type='ZeroGuess'), ImplicitGradient(SOLVER, initial_guess=guess)
            )
            features, forward_pass = layer(injections)
            sum(z.square().sum() for z in features).backward()
            assert forward_pass.adjoint.converged.all()
            gradients.append([p.grad for p in layer.parameters()])
        for expected, actual in zip(*gradients):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)

    def test_from_a_config(self, adjoint_guess):
        guess = build(dict(type=adjoint_guess.__name__), AdjointGuess, 'initial_guess')
        assert type(guess) is adjoint_guess
        assert repr(guess) == f'{adjoint_guess.__name__}()'


def test_example_from_a_config():
    guess = build(dict(type='InjectionGuess'), InitialGuess, 'initial_guess')
    assert isinstance(guess, InjectionGuess)
