import copy
import gc
import weakref

import pytest
import torch
from torch.autograd import grad, gradcheck

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    ImplicitGradient,
    PicardSolver,
    Solution,
    UnrolledGradient,
)

FORWARD = BroydenSolver(max_evals=200, tol=1e-13)
ADJOINT_SOLVERS = [
    pytest.param(PicardSolver(400, 1e-12), id='Picard'),
    pytest.param(AndersonSolver(200, 1e-12, ridge=1e-12), id='Anderson'),
    pytest.param(BroydenSolver(200, 1e-12), id='Broyden'),
    pytest.param(BroydenSolver(200, 1e-12, 'abs'), id='Broyden-abs'),
]


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture
def gradient():
    return ImplicitGradient(BroydenSolver(200, 1e-12))


class TestImplicitGradient:
    @pytest.mark.parametrize('solver', ADJOINT_SOLVERS)
    def test_equals_the_unrolled_gradient(self, problem, solver):
        z = ImplicitGradient(solver).attach(
            problem.f, FORWARD.solve(problem.f, problem.z0)
        )
        actual = grad((z * problem.weight).sin().sum(), [problem.matrix, problem.x])
        z = UnrolledGradient(200).attach(problem.f, Solution.initial(problem.z0))
        expected = grad((z * problem.weight).sin().sum(), [problem.matrix, problem.x])
        for a, e in zip(actual, expected):
            assert relative_error(a, e) <= 1e-6

    def test_gradcheck(self, problem, gradient):
        def equilibrium(matrix, x):
            def f(z):
                return torch.tanh(z @ matrix.T) + x

            return gradient.attach(f, FORWARD.solve(f, problem.z0))

        assert gradcheck(equilibrium, (problem.matrix, problem.x))

    def test_value_is_one_more_evaluation(self, problem, gradient):
        solution = PicardSolver(5, 0.0).solve(problem.f, problem.z0)
        z = gradient.attach(problem.f, solution)
        assert torch.equal(z, problem.f(solution.state))

    def test_work_is_counted(self, problem):
        """One evaluation of f forward; backward only vector-Jacobian products."""
        n_calls = 0

        def f(z):
            nonlocal n_calls
            n_calls += 1
            return problem.f(z)

        solution = FORWARD.solve(problem.f, problem.z0)
        z = ImplicitGradient(PicardSolver(6, 0.0)).attach(f, solution)
        assert solution.adjoint is None
        z.sum().backward()
        assert n_calls == 1
        assert solution.adjoint.n_evals.tolist() == [6, 6, 6]

    def test_starts_from_the_gradient(self, problem):
        solution = FORWARD.solve(problem.f, problem.z0)
        z = ImplicitGradient(PicardSolver(1, 0.0)).attach(problem.f, solution)
        (actual,) = grad((z * problem.weight).sum(), problem.x)
        # With a budget of one the adjoint state is the gradient itself.
        torch.testing.assert_close(actual, problem.weight)

    def test_without_a_solve_it_is_jacobian_free(self, problem):
        solution = FORWARD.solve(problem.f, problem.z0)
        z = ImplicitGradient(solver=None).attach(problem.f, solution)
        (actual,) = grad((z * problem.weight).sum(), problem.x)
        torch.testing.assert_close(actual, problem.weight)
        assert solution.adjoint is None

    def test_inverse_of_the_forward_solve(self, problem):
        """SHINE is exact where Broyden's inverse is: one dimension, one secant."""

        def f(z):
            return 0.5 * z + problem.x[:, :1]

        solution = BroydenSolver(4, 1e-12).solve(f, torch.zeros_like(problem.x[:, :1]))
        z = ImplicitGradient(solver=None, init='inverse').attach(f, solution)
        (actual,) = grad(z.sum(), problem.x)
        torch.testing.assert_close(actual[:, 0], torch.full_like(actual[:, 0], 2))

    def test_inverse_needs_no_products_in_a_linear_problem(self, problem):
        def run(init):
            def f(z):
                return z @ problem.matrix.T + problem.x

            solution = FORWARD.solve(f, problem.z0)
            gradient = ImplicitGradient(BroydenSolver(100, 1e-6), init=init)
            z = gradient.attach(f, solution)
            # The direction in which the forward solve ended up is one it knows.
            return grad((z * problem.x.detach()).sum(), problem.x), solution.adjoint

        (plain,), from_gradient = run('gradient')
        (actual,), from_inverse = run('inverse')
        assert relative_error(actual, plain) <= 1e-5
        assert from_inverse.converged.all()
        assert from_inverse.trace[0].max() < from_gradient.trace[0].max()

    def test_inverse_is_transposed(self, problem):
        solution = BroydenSolver(6, 0.0).solve(problem.f, problem.z0)
        inverse = solution.inverse_jacobian
        columns = [
            inverse.apply(unit.expand(3, 7))
            for unit in torch.eye(7, dtype=torch.float64)
        ]
        dense = torch.stack(columns, dim=2)
        gradient = ImplicitGradient(solver=None, init='inverse')
        z = gradient.attach(problem.f, solution)
        (actual,) = grad((z * problem.weight).sum(), problem.x)
        expected = -torch.einsum('bij,bi->bj', dense, problem.weight)
        torch.testing.assert_close(actual, expected)
        assert not torch.allclose(dense, dense.mT, rtol=1e-2)

    @pytest.mark.parametrize('solver', [None, BroydenSolver(200, 1e-12)])
    def test_inverse_that_is_of_no_use(self, problem, solver):
        """That sample starts from its gradient; the others do not notice."""

        def run(spoilt):
            solution = FORWARD.solve(problem.f, problem.z0)
            solution.inverse_jacobian.basis[spoilt] = torch.inf
            gradient = ImplicitGradient(solver, init='inverse')
            z = gradient.attach(problem.f, solution)
            return grad((z * problem.weight).sum(), problem.x)[0]

        whole, actual = run([]), run([1])
        assert actual.isfinite().all()
        assert torch.equal(actual[[0, 2]], whole[[0, 2]])
        expected = problem.weight if solver is None else whole
        torch.testing.assert_close(actual[1], expected[1])

    def test_inverse_when_backward_runs_under_autocast(self, problem):
        z0 = problem.z0.float()
        matrix, x = problem.matrix.float().detach(), problem.x.float().detach()

        def grads(enabled):
            weight = matrix.clone().requires_grad_()

            def f(z):
                with torch.autocast('cpu', enabled=False):
                    return torch.tanh(z @ weight.T) + x

            solution = BroydenSolver(20, 1e-5).solve(f, z0)
            z = ImplicitGradient(None, init='inverse').attach(f, solution)
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                z.sum().backward()
            return weight.grad

        # What is left is the product of autograd itself, in bfloat16.
        assert relative_error(grads(True), grads(False)) <= 1e-2

    def test_inverse_takes_a_solver_that_has_one(self, problem):
        solution = PicardSolver(30, 1e-6).solve(problem.f, problem.z0)
        with pytest.raises(ValueError, match="init='inverse'.*BroydenSolver"):
            ImplicitGradient(init='inverse').attach(problem.f, solution)

    def test_unknown_init(self):
        with pytest.raises(ValueError, match="init must be one of.*'zero'"):
            ImplicitGradient(init='zero')

    def test_two_forwards_before_one_backward(self, problem, gradient):
        def loss(weight):
            solution = FORWARD.solve(problem.f, problem.z0)
            return (gradient.attach(problem.f, solution) * weight).sin().sum()

        leaves = [problem.matrix, problem.x]
        weights = [problem.weight, problem.weight.flip(0)]
        separate = [grad(loss(weight), leaves) for weight in weights]
        first, second = (loss(weight) for weight in weights)
        for a, b, together in zip(*separate, grad(first + second, leaves)):
            torch.testing.assert_close(together, a + b)
        # Backward of the first after the forward of the second, then the other.
        first, second = (loss(weight) for weight in weights)
        for value, expected in zip((first, second), separate):
            for a, e in zip(grad(value, leaves), expected):
                torch.testing.assert_close(a, e)

    def test_backward_twice(self, problem, gradient):
        z = gradient.attach(problem.f, FORWARD.solve(problem.f, problem.z0))
        loss = (z * problem.weight).sum()
        first = grad(loss, [problem.matrix, problem.x], retain_graph=True)
        second = grad(loss, [problem.matrix, problem.x])
        for a, b in zip(first, second):
            assert torch.equal(a, b)

    def test_second_derivative_is_refused(self, problem, gradient):
        z = gradient.attach(problem.f, FORWARD.solve(problem.f, problem.z0))
        with pytest.raises(RuntimeError, match='no second derivative.*create_graph'):
            grad(z.sum(), problem.x, create_graph=True)

    @pytest.mark.parametrize('solver', ADJOINT_SOLVERS)
    @pytest.mark.parametrize('scale', [2.0**16, 2.0**-30])
    def test_indifferent_to_loss_scaling(self, problem, solver, scale):
        """Neither the gradient nor the work changes: powers of two are exact."""

        def run(factor):
            solution = FORWARD.solve(problem.f, problem.z0)
            z = ImplicitGradient(solver).attach(problem.f, solution)
            (result,) = grad(factor * (z * problem.weight).sum(), problem.matrix)
            return result, solution.adjoint.n_evals

        plain, plain_evals = run(1.0)
        scaled, scaled_evals = run(scale)
        assert torch.equal(plain_evals, scaled_evals)
        torch.testing.assert_close(scaled / scale, plain, rtol=1e-12, atol=0)

    @pytest.mark.parametrize('scale', [1e-25, 1e25])
    @pytest.mark.parametrize('solver', [dict(type='BroydenSolver', tol=1e-5), None])
    def test_squares_out_of_the_range_of_float32(self, problem, solver, scale):
        matrix = problem.matrix.detach().float()
        x = problem.x.detach().float().requires_grad_()

        def f(z):
            return torch.tanh(z @ matrix.T) + x

        def run(factor):
            solution = BroydenSolver(tol=1e-5).solve(f, torch.zeros(3, 7))
            z = ImplicitGradient(solver).attach(f, solution)
            (result,) = grad(z, x, factor * problem.weight.float())
            return result

        torch.testing.assert_close(run(scale) / scale, run(1.0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('value', [float('inf'), float('nan')])
    def test_gradient_that_is_not_finite_passes_through(self, problem, value):
        solution = FORWARD.solve(problem.f, problem.z0)
        z = ImplicitGradient().attach(problem.f, solution)
        cotangent = problem.weight.clone()
        cotangent[1, 2] = value
        (gradient,) = grad(z, problem.x, cotangent)
        torch.testing.assert_close(gradient, cotangent, equal_nan=True)
        assert solution.adjoint is None

    def test_linearization(self, problem, gradient):
        solution = FORWARD.solve(problem.f, problem.z0)
        attached = gradient.attach(problem.f, solution)
        z, fz = solution.linearization
        assert z.is_leaf
        assert torch.equal(z, solution.state)
        assert torch.equal(fz, attached)
        (product,) = grad(fz, z, problem.weight)
        expected = torch.autograd.functional.vjp(problem.f, z, problem.weight)[1]
        torch.testing.assert_close(product, expected)

    def test_sample_without_gradient(self, problem, gradient):
        solution = FORWARD.solve(problem.f, problem.z0)
        z = gradient.attach(problem.f, solution)
        (result,) = grad(z[0].sum(), problem.x)
        assert solution.adjoint.n_evals[1:].tolist() == [1, 1]
        assert (result[1:] == 0).all()
        assert result[0].abs().min() > 0

    def test_samples_do_not_mix(self, problem, gradient):
        def run(f, z0, weight):
            solution = FORWARD.solve(f, z0)
            loss = (gradient.attach(f, solution) * weight).sum()
            return grad(loss, problem.x)[0], solution.adjoint.n_evals

        together, n_evals = run(problem.f, problem.z0, problem.weight)
        for sample in range(3):
            rows = slice(sample, sample + 1)

            def f(z, rows=rows):
                return torch.tanh(z @ problem.matrix.T) + problem.x[rows]

            alone, n_alone = run(f, problem.z0[rows], problem.weight[rows])
            torch.testing.assert_close(alone[rows], together[rows])
            assert n_alone.item() == n_evals[sample].item()

    def test_broken_adjoint_leaves_a_finite_gradient(self, problem):
        """At an unstable solution the products overflow; the best iterate remains."""

        def f(z):
            return 1e30 * (z @ problem.matrix.T) + problem.x

        solution = Solution.initial(problem.z0)
        z = ImplicitGradient(PicardSolver(40, 1e-6)).attach(f, solution)
        (result,) = grad(z.sum(), problem.x)
        assert not solution.adjoint.converged.any()
        assert result.isfinite().all()

    def test_dtype_of_the_gradient(self, problem, gradient):
        solution = BroydenSolver(30, 1e-6).solve(problem.f, problem.z0)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            z = gradient.attach(problem.f, solution)
        z.sum().backward()
        assert problem.x.grad.dtype == torch.float64

    def test_deepcopy(self, problem, gradient):
        z = gradient.attach(problem.f, FORWARD.solve(problem.f, problem.z0))
        twin = copy.deepcopy(gradient)
        assert twin.solver.max_evals == gradient.solver.max_evals
        z.sum().backward()
        assert problem.x.grad is not None

    def test_nothing_outlives_the_graph(self, problem, gradient):
        """No reference cycle: the graph goes with its last user, backward or not."""
        gc.collect()
        gc.disable()
        try:
            for run_backward in (True, False):
                solution = FORWARD.solve(problem.f, problem.z0)
                z = gradient.attach(problem.f, solution)
                alive = weakref.ref(solution)
                if run_backward:
                    z.sum().backward()
                del z, solution
                assert alive() is None
        finally:
            gc.enable()

    def test_history_is_gone_while_autograd_carries_on(self, problem):
        histories, seen = [], []

        class Watched(BroydenSolver):
            def _init_history(self, z0):
                history = super()._init_history(z0)
                histories.append(weakref.ref(history.steps))
                return history

        solution = FORWARD.solve(problem.f, problem.z0)
        z = ImplicitGradient(Watched()).attach(problem.f, solution)
        problem.x.register_hook(lambda grad: seen.append(histories[0]()))
        z.sum().backward()
        assert seen == [None]

    def test_wrong_solver(self):
        with pytest.raises(ValueError, match=r"gradient\.solver: unknown.*'Newton'"):
            ImplicitGradient(solver=dict(type='Newton'))
