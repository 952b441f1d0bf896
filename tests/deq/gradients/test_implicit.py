import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import grad

from mdeq_mm.deq import (
    AdjointGuess,
    AndersonSolver,
    BroydenSolver,
    ImplicitGradient,
    PicardSolver,
)

ADJOINT_SOLVERS = [
    pytest.param(PicardSolver(400, 1e-12), id='Picard'),
    pytest.param(AndersonSolver(200, 1e-12, ridge=1e-12), id='Anderson'),
    pytest.param(BroydenSolver(200, 1e-12), id='Broyden'),
    pytest.param(BroydenSolver(200, 1e-12, 'abs'), id='Broyden-abs'),
]
FROM_THE_INVERSE = dict(type='InverseJacobianGuess')


@dataclass(frozen=True)
class StayingSolver(PicardSolver):
    """Returns the initial guess as the solution."""

    max_evals: int = 1
    tol: float = 0.0


@dataclass(frozen=True)
class SpoilingSolver(BroydenSolver):
    """Ends with an inverse Jacobian that is infinite for some samples."""

    spoilt: tuple = ()

    def inverse_jacobian(self, state):
        inverse = super().inverse_jacobian(state)
        inverse.basis[list(self.spoilt)] = torch.inf
        return inverse


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture
def gradient():
    return ImplicitGradient(BroydenSolver(200, 1e-12))


class TestImplicitGradient:
    def test_value_is_one_more_evaluation(self, problem, run, gradient):
        forward_pass = run(gradient, problem.f, problem.z0, PicardSolver(5, 0.0))
        assert torch.equal(forward_pass.state, problem.f(forward_pass.solution.state))

    def test_work_is_counted(self, problem, run):
        """One evaluation of f forward; backward only vector-Jacobian products."""
        n_calls = 0

        def f(z):
            nonlocal n_calls
            n_calls += 1
            return problem.f(z)

        forward_pass = run(ImplicitGradient(PicardSolver(6, 0.0)), f, problem.z0)
        assert n_calls == forward_pass.solution.n_evals.max() + 1
        assert forward_pass.adjoint is None
        forward_pass.state.sum().backward()
        assert n_calls == forward_pass.solution.n_evals.max() + 1
        assert forward_pass.adjoint.n_evals.tolist() == [6, 6, 6]

    def test_starts_from_the_gradient(self, problem, run):
        gradient = ImplicitGradient(PicardSolver(1, 0.0))
        z = run(gradient, problem.f, problem.z0).state
        (actual,) = grad((z * problem.weight).sum(), problem.x)
        # With a budget of one the adjoint state is the gradient itself.
        torch.testing.assert_close(actual, problem.weight)

    def test_without_a_solve_it_is_jacobian_free(self, problem, run):
        forward_pass = run(ImplicitGradient(solver=None), problem.f, problem.z0)
        (actual,) = grad((forward_pass.state * problem.weight).sum(), problem.x)
        torch.testing.assert_close(actual, problem.weight)
        assert forward_pass.adjoint is None

    def test_second_derivative_is_refused(self, problem, run, gradient):
        z = run(gradient, problem.f, problem.z0).state
        with pytest.raises(RuntimeError, match='no second derivative.*create_graph'):
            grad(z.sum(), problem.x, create_graph=True)

    def test_linearization(self, problem, run, gradient):
        forward_pass = run(gradient, problem.f, problem.z0)
        z, fz = forward_pass.linearization
        assert forward_pass.linearize() == (z, fz)
        assert z.is_leaf
        assert torch.equal(z, forward_pass.solution.state)
        assert torch.equal(fz, forward_pass.state)
        (product,) = grad(fz, z, problem.weight)
        expected = torch.autograd.functional.vjp(problem.f, z, problem.weight)[1]
        torch.testing.assert_close(product, expected)
        # The product has not started an adjoint solve.
        assert forward_pass.adjoint is None

    def test_gradient_that_autograd_does_not_define(self, problem, run, gradient):
        """It says None for zero."""

        class Undefined(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return z.clone()

            @staticmethod
            def backward(ctx, grad):
                return None

        forward_pass = run(gradient, problem.f, problem.z0)
        Undefined.apply(forward_pass.state).sum().backward()
        assert forward_pass.adjoint is None
        assert problem.x.grad is None or (problem.x.grad == 0).all()

    def test_dtype_of_the_gradient(self, problem, run, gradient):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            z = run(gradient, problem.f, problem.z0, BroydenSolver(30, 1e-6)).state
        z.sum().backward()
        assert problem.x.grad.dtype == torch.float64

    def test_wrong_solver(self):
        with pytest.raises(ValueError, match=r"gradient\.solver: unknown.*'Newton'"):
            ImplicitGradient(solver=dict(type='Newton'))


class TestAdjointGuess:
    def test_inverse_of_the_forward_solve(self, problem, run):
        """SHINE is exact where Broyden's inverse is: one dimension, one secant."""

        def f(z):
            return 0.5 * z + problem.x[:, :1]

        gradient = ImplicitGradient(None, FROM_THE_INVERSE)
        z = run(gradient, f, problem.z0[:, :1], BroydenSolver(4, 1e-12)).state
        (actual,) = grad(z.sum(), problem.x)
        torch.testing.assert_close(actual[:, 0], torch.full_like(actual[:, 0], 2))

    def test_inverse_needs_no_products_in_a_linear_problem(self, problem, run):
        def f(z):
            return z @ problem.matrix.T + problem.x

        def solve(guess):
            gradient = ImplicitGradient(BroydenSolver(100, 1e-6), dict(type=guess))
            forward_pass = run(gradient, f, problem.z0)
            # The direction in which the forward solve ended up is one it knows.
            loss = (forward_pass.state * problem.x.detach()).sum()
            return grad(loss, problem.x), forward_pass.adjoint

        (plain,), from_gradient = solve('GradientGuess')
        (actual,), from_inverse = solve('InverseJacobianGuess')
        assert relative_error(actual, plain) <= 1e-5
        assert from_inverse.converged.all()
        assert from_inverse.trace[0].max() < from_gradient.trace[0].max()

    def test_inverse_is_transposed(self, problem, run):
        solver = BroydenSolver(6, 0.0)
        inverse = solver.solve(problem.f, problem.z0).inverse_jacobian
        columns = [
            inverse.apply(unit.expand(3, 7))
            for unit in torch.eye(7, dtype=torch.float64)
        ]
        dense = torch.stack(columns, dim=2)
        gradient = ImplicitGradient(None, FROM_THE_INVERSE)
        z = run(gradient, problem.f, problem.z0, solver).state
        (actual,) = grad((z * problem.weight).sum(), problem.x)
        expected = -torch.einsum('bij,bi->bj', dense, problem.weight)
        torch.testing.assert_close(actual, expected)
        assert not torch.allclose(dense, dense.mT, rtol=1e-2)

    @pytest.mark.parametrize('solver', [None, BroydenSolver(200, 1e-12)])
    def test_inverse_that_is_of_no_use(self, problem, run, solver):
        """That sample starts from its gradient; the others do not notice."""

        def solve(*spoilt):
            gradient = ImplicitGradient(solver, FROM_THE_INVERSE)
            forward = SpoilingSolver(200, 1e-13, spoilt=spoilt)
            z = run(gradient, problem.f, problem.z0, forward).state
            return grad((z * problem.weight).sum(), problem.x)[0]

        whole, actual = solve(), solve(1)
        assert actual.isfinite().all()
        assert torch.equal(actual[[0, 2]], whole[[0, 2]])
        expected = problem.weight if solver is None else whole
        torch.testing.assert_close(actual[1], expected[1])

    def test_inverse_when_backward_runs_under_autocast(self, problem, run):
        z0 = problem.z0.float()
        matrix, x = problem.matrix.float().detach(), problem.x.float().detach()

        def grads(enabled):
            weight = matrix.clone().requires_grad_()

            def f(z):
                with torch.autocast('cpu', enabled=False):
                    return torch.tanh(z @ weight.T) + x

            gradient = ImplicitGradient(None, FROM_THE_INVERSE)
            z = run(gradient, f, z0, BroydenSolver(20, 1e-5)).state
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                z.sum().backward()
            return weight.grad

        # What is left is the product of autograd itself, in bfloat16.
        assert relative_error(grads(True), grads(False)) <= 1e-2

    def test_inverse_takes_a_solver_that_has_one(self, problem, run):
        gradient = ImplicitGradient(initial_guess=FROM_THE_INVERSE)
        with pytest.raises(ValueError, match='InverseJacobianGuess.*BroydenSolver'):
            run(gradient, problem.f, problem.z0, PicardSolver(30, 1e-6))

    def test_unknown_guess(self):
        with pytest.raises(
            ValueError, match=r"gradient\.initial_guess: .*'Zero'.*InverseJacobianGuess"
        ):
            ImplicitGradient(initial_guess=dict(type='Zero'))

    def test_a_guess_of_ones_own(self, problem, run):
        class TwiceTheGradient(AdjointGuess):
            def bind(self, solution):
                return lambda unit: 2 * unit

        gradient = ImplicitGradient(None, TwiceTheGradient())
        z = run(gradient, problem.f, problem.z0).state
        (actual,) = grad((z * problem.weight).sum(), problem.x)
        torch.testing.assert_close(actual, 2 * problem.weight)

    @pytest.mark.parametrize('guess', ['GradientGuess', 'InverseJacobianGuess'])
    def test_unit_gradient_per_sample(self, problem, run, guess):
        """Each sample is scaled by its own norm, which the result gets back."""
        scales = torch.tensor([[1e-6], [1.0], [1e6]], dtype=torch.float64)

        def solve(weight):
            gradient = ImplicitGradient(BroydenSolver(30, 1e-4), dict(type=guess))
            forward_pass = run(gradient, problem.f, problem.z0)
            loss = (forward_pass.state * weight).sum()
            return grad(loss, problem.x)[0], forward_pass.adjoint.n_evals

        plain, n_plain = solve(problem.weight)
        scaled, n_scaled = solve(problem.weight * scales)
        assert torch.equal(n_scaled, n_plain)
        torch.testing.assert_close(scaled / scales, plain, rtol=1e-9, atol=0)


class TestScaling:
    @pytest.mark.parametrize('solver', ADJOINT_SOLVERS)
    @pytest.mark.parametrize('scale', [2.0**16, 2.0**-30])
    def test_indifferent_to_loss_scaling(self, problem, run, solver, scale):
        """Neither the gradient nor the work changes: powers of two are exact."""

        def solve(factor):
            forward_pass = run(ImplicitGradient(solver), problem.f, problem.z0)
            loss = factor * (forward_pass.state * problem.weight).sum()
            return grad(loss, problem.matrix)[0], forward_pass.adjoint.n_evals

        plain, plain_evals = solve(1.0)
        scaled, scaled_evals = solve(scale)
        assert torch.equal(plain_evals, scaled_evals)
        torch.testing.assert_close(scaled / scale, plain, rtol=1e-12, atol=0)

    def test_samples_whose_gradients_differ_by_a_million(self, problem, run):
        """The small ones are as exact, relative to their size, as the large one."""
        gradient = ImplicitGradient(BroydenSolver(60, 1e-3, 'abs'))
        scales = torch.tensor([[1.0], [1e-6], [1e6]], dtype=torch.float64)
        forward_pass = run(gradient, problem.f, problem.z0)
        cotangent = problem.weight * scales
        (actual,) = grad(forward_pass.state, problem.x, cotangent)
        exact = run(ImplicitGradient(BroydenSolver(200, 1e-13)), problem.f, problem.z0)
        (expected,) = grad(exact.state, problem.x, cotangent)
        assert forward_pass.adjoint.n_evals.min() > 2
        for a, e in zip(actual, expected):
            assert relative_error(a, e) <= 1e-2

    @pytest.mark.parametrize('scale', [1e-25, 1e25])
    @pytest.mark.parametrize('solver', [dict(type='BroydenSolver', tol=1e-5), None])
    def test_squares_out_of_the_range_of_float32(self, problem, run, solver, scale):
        matrix = problem.matrix.detach().float()
        x = problem.x.detach().float().requires_grad_()

        def f(z):
            return torch.tanh(z @ matrix.T) + x

        def solve(factor):
            gradient = ImplicitGradient(solver)
            z = run(gradient, f, torch.zeros(3, 7), BroydenSolver(tol=1e-5)).state
            return grad(z, x, factor * problem.weight.float())[0]

        torch.testing.assert_close(
            solve(scale) / scale, solve(1.0), rtol=1e-4, atol=1e-5
        )


class TestSamples:
    @pytest.mark.parametrize('guess', ['GradientGuess', 'InverseJacobianGuess'])
    @pytest.mark.parametrize('value', [float('inf'), -float('inf'), float('nan')])
    def test_gradient_that_is_not_finite(self, problem, run, value, guess):
        """It passes through; the other samples are solved as without it."""
        gradient = ImplicitGradient(BroydenSolver(200, 1e-12), dict(type=guess))
        cotangent = problem.weight.clone()
        cotangent[1, 2] = value
        state = run(gradient, problem.f, problem.z0).state
        (found,) = grad(state, problem.x, cotangent, retain_graph=True)
        torch.testing.assert_close(found[1], cotangent[1], equal_nan=True)
        (expected,) = grad(
            state, problem.x, cotangent.index_fill(0, torch.tensor(1), 0)
        )
        for sample in (0, 2):
            torch.testing.assert_close(found[sample], expected[sample])
            assert not torch.allclose(found[sample], cotangent[sample])

    def test_sample_without_gradient(self, problem, run, gradient):
        forward_pass = run(gradient, problem.f, problem.z0)
        (result,) = grad(forward_pass.state[0].sum(), problem.x)
        assert forward_pass.adjoint.n_evals[1:].tolist() == [1, 1]
        assert (result[1:] == 0).all()
        assert result[0].abs().min() > 0

    def test_samples_do_not_mix(self, problem, run, gradient):
        def solve(f, z0, weight):
            forward_pass = run(gradient, f, z0)
            loss = (forward_pass.state * weight).sum()
            return grad(loss, problem.x)[0], forward_pass.adjoint.n_evals

        together, n_evals = solve(problem.f, problem.z0, problem.weight)
        for sample in range(3):
            rows = slice(sample, sample + 1)

            def f(z, rows=rows):
                return torch.tanh(z @ problem.matrix.T) + problem.x[rows]

            alone, n_alone = solve(f, problem.z0[rows], problem.weight[rows])
            torch.testing.assert_close(alone[rows], together[rows])
            assert n_alone.item() == n_evals[sample].item()

    def test_broken_adjoint_leaves_a_finite_gradient(self, problem, run):
        """At an unstable solution the products overflow; the best iterate remains."""

        def f(z):
            return 1e30 * (z @ problem.matrix.T) + problem.x

        gradient = ImplicitGradient(PicardSolver(40, 1e-6))
        forward_pass = run(gradient, f, problem.z0, StayingSolver())
        (result,) = grad(forward_pass.state.sum(), problem.x)
        assert not forward_pass.adjoint.converged.any()
        assert result.isfinite().all()


class TestMemory:
    def test_history_of_the_adjoint_is_gone_while_autograd_carries_on(
        self, problem, run
    ):
        histories, seen = [], []

        class Watched(BroydenSolver):
            def init(self, z0):
                state = super().init(z0)
                histories.append(weakref.ref(state))
                return state

        forward_pass = run(ImplicitGradient(Watched()), problem.f, problem.z0)
        problem.x.register_hook(lambda grad: seen.append(histories[0]()))
        forward_pass.state.sum().backward()
        assert seen == [None]
        assert forward_pass.adjoint.inverse_jacobian is None

    @pytest.mark.parametrize('guess', ['GradientGuess', 'InverseJacobianGuess'])
    def test_history_of_the_forward_solve_goes_with_the_graph(
        self, problem, run, guess
    ):
        """It is kept until backward only where the adjoint starts from it."""
        bases = []

        class Watched(BroydenSolver):
            def inverse_jacobian(self, state):
                inverse = super().inverse_jacobian(state)
                bases.append(weakref.ref(inverse))
                return inverse

        gc.collect()
        gc.disable()
        try:
            gradient = ImplicitGradient(initial_guess=dict(type=guess))
            solver = Watched(200, 1e-13)
            forward_pass = run(gradient, problem.f, problem.z0, solver)
            assert (bases[0]() is not None) == (guess == 'InverseJacobianGuess')
            del forward_pass
            assert bases[0]() is None
        finally:
            gc.enable()
