import pytest
import torch

from mdeq_mm.deq import PicardSolver

from .problems import Spy


class TestPicardSolver:
    @pytest.mark.parametrize(
        ('damping', 'slope', 'shift', 'expected'),
        [
            (1, 0.5, 1.0, [0, 1, 1.5, 1.75]),
            (0.25, -2.0, 3.0, [0, 0.75, 0.9375, 0.984375]),
        ],
    )
    def test_iterates(self, damping, slope, shift, expected):
        spy = Spy(lambda z: slope * z + shift)
        PicardSolver(4, 0.0, damping=damping).solve(spy, torch.zeros(1, 1))
        assert [z.item() for z in spy.states] == expected

    def test_default_stands_eigenvalues_beyond_minus_one(self):
        x = torch.ones(1, 3)
        eigenvalues = torch.tensor([-1.2, 0.0, 0.5])
        solution = PicardSolver(tol=1e-4).solve(lambda z: eigenvalues * z + x, 0 * x)
        assert solution.converged.all()
        torch.testing.assert_close(
            solution.state, x / (1 - eigenvalues), rtol=1e-3, atol=0
        )

    @pytest.mark.parametrize('damping', [0.0, -0.1, 1.1])
    def test_wrong_damping(self, damping):
        with pytest.raises(ValueError, match=rf'damping must .* got {damping}'):
            PicardSolver(damping=damping)
