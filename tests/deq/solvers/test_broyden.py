import pytest
import torch

from mdeq_mm.deq import BroydenSolver, SolveStatus


@pytest.fixture
def problem():
    matrix = torch.randn(2, 12, 12, dtype=torch.float64) / 8
    shift = torch.randn(2, 12, dtype=torch.float64)
    return lambda z: torch.einsum('bij,bj->bi', matrix, z) + shift


class TestBroydenSolver:
    def test_inverse_satisfies_the_secant_equation(self, problem):
        """H (g_new - g_old) = z_new - z_old."""
        iterates, images = [], []

        def spy(z):
            iterates.append(z.clone())
            images.append(problem(z) - z)
            return problem(z)

        solver = BroydenSolver(max_evals=9, tol=0.0)
        solution = solver.solve(spy, torch.zeros(2, 12, dtype=torch.float64))
        # The last evaluation is not stepped from, so the newest pair is the one before.
        secant = images[-2] - images[-3]
        step = iterates[-2] - iterates[-3]
        torch.testing.assert_close(solution.inverse_jacobian.apply(secant), step)

    @pytest.mark.parametrize('memory', [4, 6, 50])
    def test_inverse_is_the_product_of_the_kept_updates(self, problem, memory):
        iterates = []

        def spy(z):
            iterates.append(z.clone())
            return problem(z)

        solver = BroydenSolver(max_evals=9, tol=0.0, memory=memory)
        solution = solver.solve(spy, torch.zeros(2, 12, dtype=torch.float64))
        steps = torch.stack(iterates).diff(dim=0)[-memory - 1 :]
        expected = -torch.eye(12, dtype=torch.float64).expand(2, 12, 12)
        for old, new in zip(steps[:-1], steps[1:]):
            update = (
                torch.einsum('bi,bj->bij', new, old) / old.pow(2).sum(1)[:, None, None]
            )
            expected = expected + update @ expected
        x = torch.randn(2, 12, dtype=torch.float64)
        torch.testing.assert_close(
            solution.inverse_jacobian.apply(x), (expected @ x[..., None])[..., 0]
        )

    @pytest.mark.parametrize('memory', [2, 3, 4])
    def test_restart_keeps_the_last_secant_pair(self, problem, memory):
        """After ``2 memory + 1`` steps the inverse is Broyden's update of -I with it,
        and the next step is made with that inverse."""
        iterates, images = [], []

        def spy(z):
            iterates.append(z.clone())
            images.append(problem(z) - z)
            return problem(z)

        # The last evaluation is not stepped from.
        solver = BroydenSolver(max_evals=2 * memory + 3, tol=0.0, memory=memory)
        inverse = solver.solve(
            spy, torch.zeros(2, 12, dtype=torch.float64)
        ).inverse_jacobian
        s, y = iterates[-2] - iterates[-3], images[-2] - images[-3]
        curvature = (s * y).sum(1, keepdim=True)
        x = torch.randn(2, 12, dtype=torch.float64)
        expected = -x + (s + y) * (s * x).sum(1, keepdim=True) / curvature
        torch.testing.assert_close(inverse.apply(x), expected)
        torch.testing.assert_close(
            iterates[-1], iterates[-2] - inverse.apply(images[-2])
        )

    def test_inverse_does_not_depend_on_batch_mates(self, problem):
        """It stays as it was when its sample stopped, however long others go on."""
        scale = torch.tensor([[0.01], [1.0]], dtype=torch.float64)
        z0 = torch.zeros(2, 12, dtype=torch.float64)
        x = torch.randn(2, 12, dtype=torch.float64)

        def f(z):
            return scale * torch.tanh(problem(z))

        def alone(z):
            return f(z.expand(2, 12))[:1]

        solver = BroydenSolver(max_evals=30, tol=1e-10, memory=3)
        both = solver.solve(f, z0)
        # The other sample has restarted meanwhile.
        assert both.n_evals[0] < 2 * solver.memory + 2 < both.n_evals[1]
        single = solver.solve(alone, z0[:1])
        torch.testing.assert_close(
            both.inverse_jacobian.apply(x)[:1], single.inverse_jacobian.apply(x[:1])
        )

    def test_inverse_of_a_linear_system(self, problem):
        """With full memory Broyden solves a linear system in at most 2N steps, and its
        inverse is exact on the space it has explored."""
        solver = BroydenSolver(max_evals=60, tol=1e-12, memory=60)
        solution = solver.solve(problem, torch.zeros(2, 12, dtype=torch.float64))
        assert solution.converged.all()
        assert (solution.n_evals <= 26).all()

    def test_update_is_left_out_where_it_is_undefined(self):
        """The residual is constant, so that the secant equation has no solution."""
        solver = BroydenSolver(max_evals=6, tol=0.0)
        solution = solver.solve(lambda z: z + 1, torch.zeros(1, 3))
        assert solution.status.tolist() == [SolveStatus.BUDGET_SPENT]
        x = torch.randn(1, 3)
        assert torch.equal(solution.inverse_jacobian.apply(x), -x)

    def test_transpose(self, problem):
        solver = BroydenSolver(max_evals=9, tol=0.0)
        inverse = solver.solve(
            problem, torch.zeros(2, 12, dtype=torch.float64)
        ).inverse_jacobian
        x, y = torch.randn(2, 2, 12, dtype=torch.float64)
        torch.testing.assert_close(
            (inverse.apply(x) * y).sum(1), (x * inverse.apply_transpose(y)).sum(1)
        )

    @pytest.mark.parametrize(('memory', 'n_steps'), [(4, 5), (100, 8)])
    def test_memory_is_bounded(self, problem, memory, n_steps):
        solver = BroydenSolver(max_evals=9, tol=0.0, memory=memory)
        solution = solver.solve(problem, torch.zeros(2, 12, dtype=torch.float64))
        assert solution.inverse_jacobian.basis.shape == (2, n_steps, 12)

    @pytest.mark.parametrize(
        ('name', 'value'), [('memory', 1), ('memory', 2.0), ('history_dtype', 'int8')]
    )
    def test_wrong_setting(self, name, value):
        with pytest.raises(ValueError, match=f'{name} must .*, got {value!r}'):
            BroydenSolver(**{name: value})
