import pytest
import torch

from mdeq_mm.deq import PicardSolver


class TestPicardSolver:
    def test_iterates(self):
        visited = []

        def f(z):
            visited.append(z.item())
            return z / 2 + 1

        PicardSolver(max_evals=4, tol=0.0, damping=1).solve(f, torch.zeros(1, 1))
        assert visited == [0, 1, 1.5, 1.75]

    def test_default_stands_eigenvalues_beyond_minus_one(self):
        x = torch.ones(1, 3)
        eigenvalues = torch.tensor([-1.2, 0.0, 0.5])
        solution = PicardSolver(tol=1e-4).solve(lambda z: eigenvalues * z + x, 0 * x)
        assert solution.converged.all()
        torch.testing.assert_close(
            solution.state, x / (1 - eigenvalues), rtol=1e-3, atol=0
        )

    def test_damping(self):
        visited = []

        def f(z):
            visited.append(z.item())
            return -2 * z + 3

        solver = PicardSolver(max_evals=4, tol=0.0, damping=0.25)
        solver.solve(f, torch.zeros(1, 1))
        assert visited == [0, 0.75, 0.9375, 0.984375]

    @pytest.mark.parametrize('damping', [0.0, -0.1, 1.1])
    def test_wrong_damping(self, damping):
        with pytest.raises(ValueError, match=rf'damping must .* got {damping}'):
            PicardSolver(damping=damping)
