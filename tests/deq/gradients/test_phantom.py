import pytest
import torch
from torch.autograd import grad, gradcheck

from mdeq_mm.deq import BroydenSolver, ImplicitGradient, PhantomGradient

FORWARD = BroydenSolver(max_evals=200, tol=1e-13)


class TestPhantomGradient:
    @pytest.mark.parametrize(('steps', 'damping'), [(1, 1.0), (1, 0.5), (5, 0.7)])
    def test_gradcheck_from_a_fixed_solution(self, problem, steps, damping):
        solution = FORWARD.solve(problem.f, problem.z0)

        def steps_from_it(matrix, x):
            return PhantomGradient(steps, damping).attach(
                lambda z: torch.tanh(z @ matrix.T) + x, solution
            )

        assert gradcheck(steps_from_it, (problem.matrix, problem.x))

    def test_one_full_step_is_jacobian_free(self, problem):
        solution = FORWARD.solve(problem.f, problem.z0)
        z = PhantomGradient(steps=1, damping=1.0).attach(problem.f, solution)
        actual = grad(z.sum(), [problem.matrix, problem.x])
        expected = grad(problem.f(solution.state).sum(), [problem.matrix, problem.x])
        for a, e in zip(actual, expected):
            assert torch.equal(a, e)

    def test_equals_the_damped_neumann_series(self, problem):
        """tau sum_k ((1 - tau) I + tau J^T)^k g, Geng et al., equation 12."""
        problem.z0 = problem.z0[:1]
        problem.x = problem.x[:1].detach().requires_grad_()

        def f(z):
            return torch.tanh(z @ problem.matrix.T) + problem.x

        solution = FORWARD.solve(f, problem.z0)
        jacobian = torch.autograd.functional.jacobian(
            lambda z: f(z.unsqueeze(0))[0], solution.state[0]
        )
        step = 0.6 * torch.eye(7) + 0.4 * jacobian.T
        g = problem.weight[0]
        expected = 0.4 * sum(torch.matrix_power(step, k) @ g for k in range(5))
        z = PhantomGradient(steps=5, damping=0.4).attach(f, solution)
        (actual,) = grad((z * g).sum(), problem.x)
        torch.testing.assert_close(actual[0], expected)

    def test_many_steps_are_the_implicit_gradient(self, problem):
        solution = FORWARD.solve(problem.f, problem.z0)
        z = PhantomGradient(steps=300, damping=0.5).attach(problem.f, solution)
        actual = grad(z.sum(), problem.matrix)
        z = ImplicitGradient(BroydenSolver(200, 1e-12)).attach(problem.f, solution)
        torch.testing.assert_close(actual, grad(z.sum(), problem.matrix))

    @pytest.mark.parametrize(
        ('argument', 'value'), [('steps', 0), ('damping', 0.0), ('damping', 1.01)]
    )
    def test_wrong_argument(self, argument, value):
        with pytest.raises(ValueError, match=f'{argument} must .*, got {value}'):
            PhantomGradient(**{argument: value})
