import pytest
import torch

from mdeq_mm.deq import BroydenSolver


@pytest.fixture
def problem():
    matrix = torch.randn(2, 12, 12, dtype=torch.float64) / 8
    shift = torch.randn(2, 12, dtype=torch.float64)
    return lambda z: torch.einsum('bij,bj->bi', matrix, z) + shift


class TestBroydenSolver:
    @pytest.mark.parametrize('memory', [1, 3, 50])
    def test_inverse_satisfies_the_secant_equation(self, problem, memory):
        """H (g_new - g_old) = z_new - z_old, also where an old update is dropped."""
        iterates, images = [], []

        def spy(z):
            iterates.append(z.clone())
            images.append(problem(z) - z)
            return problem(z)

        solver = BroydenSolver(max_evals=9, tol=0.0, memory=memory)
        solution = solver.solve(spy, torch.zeros(2, 12, dtype=torch.float64))
        # The last evaluation is not stepped from, so the newest pair is the one before.
        secant = images[-2] - images[-3]
        step = iterates[-2] - iterates[-3]
        torch.testing.assert_close(solution.inverse_jacobian.apply(secant), step)

    def test_inverse_of_a_linear_system(self, problem):
        """With full memory Broyden solves a linear system in at most 2N steps, and its
        inverse is exact on the space it has explored."""
        solver = BroydenSolver(max_evals=60, tol=1e-12, memory=60)
        solution = solver.solve(problem, torch.zeros(2, 12, dtype=torch.float64))
        assert solution.converged.all()
        assert (solution.n_evals <= 26).all()

    def test_transpose(self, problem):
        solver = BroydenSolver(max_evals=9, tol=0.0)
        inverse = solver.solve(
            problem, torch.zeros(2, 12, dtype=torch.float64)
        ).inverse_jacobian
        x, y = torch.randn(2, 2, 12, dtype=torch.float64)
        torch.testing.assert_close(
            (inverse.apply(x) * y).sum(1), (x * inverse.apply_transpose(y)).sum(1)
        )

    @pytest.mark.parametrize(('memory', 'rank'), [(4, 4), (100, 7)])
    def test_memory_is_bounded(self, problem, memory, rank):
        solver = BroydenSolver(max_evals=9, tol=0.0, memory=memory)
        solution = solver.solve(problem, torch.zeros(2, 12, dtype=torch.float64))
        assert solution.inverse_jacobian.u.shape == (2, rank, 12)
        assert solution.inverse_jacobian.v.shape == (2, rank, 12)

    def test_wrong_memory(self):
        with pytest.raises(ValueError, match='memory must be .* at least 1, got 0'):
            BroydenSolver(memory=0)
