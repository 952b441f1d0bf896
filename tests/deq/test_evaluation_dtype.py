"""Layers whose solves begin in bfloat16."""

import copy
import gc
import io
import weakref
from dataclasses import dataclass
from threading import Thread

import pytest
import torch
from torch import nn

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Cell,
    EquilibriumLayer,
    GuardedStart,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    PreviousGuess,
    Unrolled,
    VariationalDropout,
    freezable_weight_norm,
)
from mdeq_mm.deq.autocast import autocast_dtype

from .solvers.table import SOLVERS

BFLOAT16 = 'bfloat16'
RESOLUTIONS = []
X = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(1))
TOL = 1e-5


class ConvCell(Cell):
    """A contraction with a normalised and a plain weight, and a dropout."""

    def __init__(self, scale=0.6, dropout=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = freezable_weight_norm(nn.Conv2d(6, 6, 3, padding=1, bias=False))
        self.mix = nn.Conv2d(6, 6, 1)
        self.dropout = VariationalDropout(dropout, 6)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.mix.weight.data.mul_(0.3)
        gain = self.conv.parametrizations.weight.original0
        gain.data.fill_(scale)
        self.dtypes = []

    def forward(self, states, injections):
        z, x = states[0], injections[0]
        h = self.dropout(self.conv(z))
        self.dtypes.append(h.dtype)
        return (torch.tanh(h + 0.2 * self.mix(torch.relu(h)) + x),)


def make_layer(solver=None, evaluation_dtype=BFLOAT16, gradient=None, **kwargs):
    solver = BroydenSolver(60, TOL) if solver is None else solver
    gradient = ImplicitGradient(solver) if gradient is None else gradient
    cell = ConvCell(**kwargs)
    return EquilibriumLayer(
        cell, solver, gradient, 3, evaluation_dtype=evaluation_dtype
    )


def gradients(layer, x=X):
    """Returns the pass, and the gradients of all parameters and of the injection."""
    x = x.clone().requires_grad_()
    features, forward_pass = layer((x,))
    # In float64: what the loss adds shall not round.
    loss = features[0].double().square().sum()
    return forward_pass, torch.autograd.grad(loss, [*layer.parameters(), x])


def assert_close(actual, expected, limit):
    for a, b in zip(actual, expected):
        assert (a - b).norm() <= limit * b.norm()


@pytest.fixture
def layer():
    return make_layer()


class TestAnswer:
    @pytest.mark.parametrize('entry', SOLVERS)
    def test_is_that_of_float32(self, entry):
        """Forward and backward, with a tolerance that bfloat16 cannot resolve."""
        solver = entry.make(max_evals=300, tol=TOL)
        mixed, found = gradients(make_layer(solver))
        plain, expected = gradients(make_layer(solver, None))
        assert mixed.solution.converged.all()
        assert mixed.adjoint.converged.all()
        assert_close([mixed.state], [plain.state], 1e-4)
        assert_close(found, expected, 1e-3)
        assert (mixed.solution.n_reduced > 0).all()
        assert (mixed.solution.n_evals > mixed.solution.n_reduced).all()
        # Products in bfloat16 are too far off for such a tolerance.
        assert mixed.adjoint.n_reduced is None
        assert plain.solution.n_reduced is None

    def test_loose_tolerance_evaluates_in_bfloat16_alone(self):
        layer = make_layer(AndersonSolver(30, 0.25))
        forward_pass, _ = gradients(layer)
        solution, adjoint = forward_pass.solution, forward_pass.adjoint
        assert torch.equal(solution.n_reduced, solution.n_evals)
        assert torch.equal(adjoint.n_reduced, adjoint.n_evals)
        n_calls = int(solution.n_evals.max())
        # One in float32 for the parameters, and one for the products.
        assert layer.cell.dtypes == [
            *[torch.bfloat16] * n_calls,
            torch.float32,
            torch.bfloat16,
        ]

    @pytest.mark.parametrize(('tol', 'is_kept'), [(0.25, True), (TOL, False)])
    def test_kept_until_backward_only_for_its_products(self, tol, is_kept):
        layer = make_layer(gradient=ImplicitGradient(BroydenSolver(60, tol)))
        features, forward_pass = layer((X,))
        reduced = weakref.ref(forward_pass.reduced)
        del forward_pass
        gc.collect()
        assert (reduced() is not None) == is_kept
        features[0].sum().backward()
        del features
        gc.collect()
        assert reduced() is None

    def test_states_are_float32(self, layer):
        forward_pass, found = gradients(layer)
        solution = forward_pass.solution
        for tensor in (solution.state, solution.residual, forward_pass.state, *found):
            assert tensor.dtype == torch.float32

    def test_samples_that_have_stopped_leave_the_batch(self):
        x = X * torch.tensor([0.0, 0.1, 1.0, 3.0]).view(4, 1, 1, 1)
        layer = make_layer(AndersonSolver(60, TOL)).eval()
        rows = []
        layer.cell.register_forward_pre_hook(
            lambda cell, args: rows.append(len(args[0][0]))
        )
        with torch.no_grad():
            features, forward_pass = layer((x,))
            alone = [layer((x[n : n + 1],)).features[0] for n in range(4)]
        solution = forward_pass.solution
        assert solution.converged.all()
        assert sum(rows[: len(solution.trace)]) == solution.n_evals.sum()
        torch.testing.assert_close(features[0], torch.cat(alone), rtol=1e-4, atol=1e-4)

    def test_expanded_injections_are_not_written_out(self):
        seen = []

        class Two(ConvCell):
            def forward(self, states, injections):
                seen.append(injections[1].stride())
                return super().forward(states, injections)[0], 0.5 * states[1]

        layer = EquilibriumLayer(
            Two(), PicardSolver(9, 0.1), PhantomGradient(), evaluation_dtype=BFLOAT16
        )
        with torch.no_grad():
            layer((X, torch.zeros(()).expand(4, 2, 3, 3)))
        assert {stride[0] for stride in seen} == {0}

    def test_nan_in_one_sample(self, layer):
        x = X.clone()
        x[1] = torch.nan
        with pytest.warns(RuntimeWarning, match='NaN or Inf'), torch.no_grad():
            _, broken = layer((x,))
        with torch.no_grad():
            _, whole = layer((X,))
        others = [0, 2, 3]
        assert broken.solution.converged.tolist() == [True, False, True, True]
        assert broken.solution.state.isfinite().all()
        assert torch.equal(broken.state[others], whole.state[others])
        assert torch.equal(
            broken.solution.n_evals[others], whole.solution.n_evals[others]
        )

    def test_gradient_of_a_broken_sample_reaches_the_scaler(self, layer):
        x = X.clone().requires_grad_()
        features, _ = layer((x,))
        weight = torch.ones_like(features[0])
        weight[2] = torch.inf
        (grad,) = torch.autograd.grad(features[0], x, weight)
        assert not grad[2].isfinite().all()
        assert grad[[0, 1, 3]].isfinite().all()

    def test_same_masks_in_both_precisions(self):
        layer = make_layer(AndersonSolver(60, TOL), dropout=0.5)
        forward_pass, _ = gradients(layer)
        assert forward_pass.solution.converged.all()
        residual = forward_pass.f(forward_pass.state) - forward_pass.state
        assert residual.norm() <= 1e-3 * forward_pass.state.norm()

    def test_two_backward_passes(self, layer):
        x = X.clone().requires_grad_()
        features, _ = layer((x,))
        once, twice = (
            torch.autograd.grad(features[0].sum(), x, retain_graph=True)[0]
            for _ in range(2)
        )
        torch.testing.assert_close(once, twice)

    def test_start_of_the_adjoint_solve_from_the_inverse(self):
        guess = dict(type='InverseJacobianGuess')
        solver = BroydenSolver(60, TOL)
        gradient = ImplicitGradient(solver, guess)
        _, found = gradients(make_layer(solver, gradient=gradient))
        _, expected = gradients(make_layer(solver, None))
        assert_close(found, expected, 1e-3)


class TestErrorsThatAreAllowedFor:
    @dataclass(frozen=True)
    class Noting(AndersonSolver):
        def solve(self, *args, reduced=None, **kwargs):
            RESOLUTIONS.append(reduced and reduced.resolution)
            return super().solve(*args, reduced=reduced, **kwargs)

    def test_forward_and_adjoint(self):
        """What a ReLU lets through changes by a jump, so products are less exact."""
        for tol, expected in ((0.18, [2**-7, 2**-3.5]), (0.17, [2**-7, None])):
            RESOLUTIONS.clear()
            gradients(make_layer(self.Noting(30, tol)))
            assert expected == RESOLUTIONS

    @pytest.mark.parametrize('tol', [0.03, 0.3])
    def test_residuals_in_float32_are_within_the_tolerance(self, tol):
        layer = make_layer(AndersonSolver(60, tol))
        x = X.clone().requires_grad_()
        features, done = layer((x,))
        grad = torch.randn(features[0].shape)
        features[0].backward(grad, retain_graph=True)
        z, fz = done.linearize()
        residual = (fz - z).norm(dim=1) / fz.norm(dim=1)
        assert (residual <= tol).all()
        y, unit = done.adjoint.state, nn.functional.normalize(grad.flatten(1))
        fy = torch.autograd.grad(fz, z, y)[0] + unit
        assert ((fy - y).norm(dim=1) / fy.norm(dim=1) <= tol).all()


class TestOtherModes:
    @pytest.mark.parametrize('mode', [Unrolled(3), None])
    def test_phantom_gradient_and_unrolled_mode_record_float32(self, mode):
        layer = make_layer(gradient=PhantomGradient(2))
        with layer.using(mode=mode):
            forward_pass, found = gradients(layer)
        assert set(layer.cell.dtypes[-2:]) == {torch.float32}
        other = make_layer(evaluation_dtype=None, gradient=PhantomGradient(2))
        with other.using(mode=mode):
            _, expected = gradients(other)
        assert_close(found, expected, 1e-3)
        if mode is not None:
            assert forward_pass.reduced is None
            assert set(layer.cell.dtypes) == {torch.float32}

    def test_guarded_start(self):
        layer = make_layer(PicardSolver(60, TOL)).eval()
        mode = GuardedStart(PicardSolver(60, TOL), PhantomGradient())
        with (
            torch.no_grad(),
            layer.using(mode=mode, initial_guess=PreviousGuess().eval()),
        ):
            first = layer((X,)).forward_pass
            layer.cell.dtypes.clear()
            second = layer((1.01 * X,)).forward_pass
        assert second.solution.converged.all()
        assert second.solution.n_evals.max() < first.solution.n_evals.max()
        # The evaluation that looks whether the start is good is the first of the solve.
        assert len(layer.cell.dtypes) == len(second.solution.trace)
        assert layer.cell.dtypes[0] == torch.bfloat16

    def test_evaluation_in_vain_is_counted_in_its_precision(self):
        layer = make_layer(PicardSolver(60, 0.25)).eval()
        mode = GuardedStart(PicardSolver(60, 0.25), PhantomGradient())
        guess = PreviousGuess().eval()
        with torch.no_grad(), layer.using(mode=mode, initial_guess=guess):
            layer((X,))
            solution = layer((-X,)).forward_pass.solution
        assert layer.cell.dtypes[-1] == torch.bfloat16
        assert torch.equal(solution.n_reduced, solution.n_evals)


class TestWhereItHasNoEffect:
    def test_default(self):
        layer = make_layer(evaluation_dtype=None)
        assert gradients(layer)[0].reduced is None
        assert set(layer.cell.dtypes) == {torch.float32}

    def test_under_autocast(self):
        x = X.clone()
        states = []
        for dtype in (None, BFLOAT16):
            layer = make_layer(AndersonSolver(20, 0.1), dtype)
            with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
                _, forward_pass = layer((x,))
            assert forward_pass.reduced is None
            states.append(forward_pass.state)
        assert torch.equal(*states)

    def test_in_a_layer_in_half_precision(self):
        layer = make_layer(AndersonSolver(20, 0.1)).bfloat16()
        with torch.no_grad():
            features, forward_pass = layer((X.bfloat16(),))
        assert forward_pass.reduced is None
        assert features[0].dtype == torch.bfloat16

    def test_autocast_of_the_caller_is_left_alone(self, layer):
        gradients(layer)
        assert autocast_dtype('cpu') is None

    def test_within_autocast_that_is_off(self):
        """There autocast keeps casts, which a step of an optimizer makes stale."""
        layer = make_layer(AndersonSolver(30, 0.25))
        with torch.autocast('cpu', enabled=False), torch.no_grad():
            layer((X,))
            with torch.enable_grad():
                gradients(layer)
            layer.cell.mix.weight.mul_(-3)
            found = layer((X,)).features[0]
        with torch.no_grad():
            assert torch.equal(found, layer((X,)).features[0])


class TestSetting:
    @pytest.mark.parametrize('value', ['float16', torch.bfloat16, True])
    def test_wrong_value(self, value):
        with pytest.raises(ValueError, match='evaluation_dtype must be one of'):
            make_layer(evaluation_dtype=value)

    def test_wrong_value_is_not_set(self, layer):
        with pytest.raises(ValueError, match="one of .*bfloat16.*, got 'bf16'"):
            layer.evaluation_dtype = 'bf16'
        assert layer.evaluation_dtype == BFLOAT16

    def test_float64_is_refused(self, layer):
        message = "evaluation_dtype must be None for a model in float64.*'bfloat16'"
        with pytest.raises(ValueError, match=message):
            layer.double()((X.double(),))

    def test_can_be_set(self, layer):
        layer.evaluation_dtype = None
        assert gradients(layer)[0].solution.n_reduced is None

    def test_copies_and_state_dicts(self, layer):
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        other = make_layer(evaluation_dtype=None)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert other.evaluation_dtype is None
        clone = copy.deepcopy(layer)
        assert clone.evaluation_dtype == BFLOAT16
        with torch.no_grad():
            assert torch.equal(clone((X,)).features[0], layer((X,)).features[0])

    def test_threads(self, layer):
        """What `using` overrides in one thread does not reach another one."""
        found = []

        def solve():
            with torch.no_grad():
                found.append(layer((X,)).forward_pass.solution)

        with layer.using(solver=PicardSolver(2, 0.0)):
            thread = Thread(target=solve)
            thread.start()
            thread.join()
            solve()
        other, here = found
        assert other.converged.all()
        assert here.n_reduced.tolist() == [2] * 4
