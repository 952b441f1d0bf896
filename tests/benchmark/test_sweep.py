import pytest
import torch

from mdeq_mm.benchmark import Grid, Problem, sweep, sweep_problem

TOLS = ('0.01', '0.001', '0.0001')


def test_both_problems(backbone, images):
    grid = Grid((2, 4), (3,), (0.0, 1e-4), mixing=(1.0,), damping=(0.5,))
    measured = sweep(backbone, images, 4, grid)
    assert set(measured) == {'forward', 'adjoint'}
    for rows in measured.values():
        assert {row['solver'] for row in rows} == {
            'BroydenSolver(memory=2)',
            'BroydenSolver(memory=4)',
            'AndersonSolver(window=3, ridge=0, mixing=1)',
            'AndersonSolver(window=3, ridge=0.0001, mixing=1)',
            'PicardSolver(damping=0.5)',
        }
        for row in rows:
            assert list(row['evaluations_to']) == ['0.1', *TOLS]


class TestSweepProblem:
    def test_sample_that_does_not_get_there(self):
        slopes = torch.tensor([[0.5], [-0.99]])
        problem = Problem(lambda z: slopes * z + 1, torch.zeros(2, 3), lambda: None)
        grid = Grid((), (), (), mixing=(), damping=(0.5, 1.0))
        damped, plain = sweep_problem(problem, 30, grid)
        assert damped['solver'] == 'PicardSolver(damping=0.5)'
        counts = plain['evaluations_to']['0.01']
        assert counts == dict(reached=1, max=None, mean=(7 + 30) / 2)

    @pytest.fixture
    def rows(self):
        # Damped by d, the error of f(z) = (z + 1) / 2 is (1 - d / 2)^n.
        problem = Problem(lambda z: (z + 1) / 2, torch.zeros(2, 3), lambda: None)
        grid = Grid((2,), (1,), (0.0,), mixing=(0.8,), damping=(0.5, 1.0))
        return sweep_problem(problem, 30, grid)

    def test_counts(self, rows):
        damped = {row['solver']: row['evaluations_to'] for row in rows}
        counts = [damped['PicardSolver(damping=1)'][tol]['max'] for tol in TOLS]
        assert counts == [7, 10, 14]
        counts = [damped['PicardSolver(damping=0.5)'][tol] for tol in TOLS]
        assert [count['max'] for count in counts] == [15, 23, None]
        assert counts[1] == dict(reached=2, max=23, mean=23)
        assert counts[2] == dict(reached=0, max=None, mean=30)

    def test_order(self, rows):
        assert [row['solver'] for row in rows[-3:]] == [
            'PicardSolver(damping=1)',
            'AndersonSolver(window=1, ridge=0, mixing=0.8)',
            'PicardSolver(damping=0.5)',
        ]
