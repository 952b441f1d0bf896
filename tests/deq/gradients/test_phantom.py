import pytest
import torch
from torch.autograd import grad

from mdeq_mm.deq import BroydenSolver, ImplicitGradient, PhantomGradient


class TestPhantomGradient:
    def test_one_full_step_is_jacobian_free(self, problem, run):
        forward_pass = run(PhantomGradient(steps=1, damping=1.0), problem.f, problem.z0)
        actual = grad(forward_pass.state.sum(), [problem.matrix, problem.x])
        step = problem.f(forward_pass.solution.state)
        for a, e in zip(actual, grad(step.sum(), [problem.matrix, problem.x])):
            assert torch.equal(a, e)

    def test_equals_the_damped_neumann_series(self, problem, run):
        """tau sum_k ((1 - tau) I + tau J^T)^k g, Geng et al., equation 12."""
        z0 = problem.z0[:1]
        x = problem.x[:1].detach().requires_grad_()

        def f(z):
            return torch.tanh(z @ problem.matrix.T) + x

        forward_pass = run(PhantomGradient(steps=5, damping=0.4), f, z0)
        jacobian = torch.autograd.functional.jacobian(
            lambda z: f(z.unsqueeze(0))[0], forward_pass.solution.state[0]
        )
        step = 0.6 * torch.eye(7) + 0.4 * jacobian.T
        g = problem.weight[0]
        expected = 0.4 * sum(torch.matrix_power(step, k) @ g for k in range(5))
        (actual,) = grad((forward_pass.state * g).sum(), x)
        torch.testing.assert_close(actual[0], expected)

    def test_many_steps_are_the_implicit_gradient(self, problem, run):
        phantom = PhantomGradient(steps=300, damping=0.5)
        implicit = ImplicitGradient(BroydenSolver(200, 1e-12))
        actual, expected = (
            grad(run(gradient, problem.f, problem.z0).state.sum(), problem.matrix)
            for gradient in (phantom, implicit)
        )
        torch.testing.assert_close(actual, expected)

    def test_differentiable_twice(self, problem, run):
        forward_pass = run(PhantomGradient(steps=2), problem.f, problem.z0)
        loss = forward_pass.state.square().sum()
        (first,) = grad(loss, problem.x, create_graph=True)
        (second,) = grad(first.sum(), problem.matrix)
        assert second.abs().sum() > 0

    @pytest.mark.parametrize(
        ('argument', 'value'),
        [('steps', 0), ('steps', 1.0), ('damping', 0.0), ('damping', 1.01)],
    )
    def test_wrong_argument(self, argument, value):
        with pytest.raises(ValueError, match=f'{argument} must .*, got {value}'):
            PhantomGradient(**{argument: value})
