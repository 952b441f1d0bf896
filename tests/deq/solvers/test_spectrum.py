"""Linear problems near the edge of convergence: counts of each solver beside SciPy's.

The Jacobian has 200 eigenvalues of modulus up to a radius. The nearer the radius is to
1, the slower the plain iteration, and the more the memory of a method matters.
"""

import warnings
from functools import cache

import numpy as np
import pytest
import scipy.optimize
import torch

from mdeq_mm.deq import AndersonSolver, BroydenSolver, PicardSolver

N = 200
SEEDS = range(3)
BUDGET = 500
TOL = 1e-6
RADII = (0.9, 0.95, 0.99, 0.999)
# Nobody solves non-normal problems of radius 0.999 within the budget.
PROBLEMS = [
    (kind, radius)
    for kind in ('real', 'positive', 'outlier', 'complex', 'non-normal')
    for radius in RADII
    if (kind, radius) != ('non-normal', 0.999)
]


def eigenvalues(kind, radius, generator):
    values = radius * torch.rand(N, generator=generator, dtype=torch.float64)
    values[0] = radius
    if kind == 'real':
        return torch.linspace(-radius, radius, N, dtype=torch.float64)
    if kind == 'outlier':
        values[1:] *= 0.5
    return values


@cache
def problem(kind, radius):
    """Returns matrices ``(B, N, N)`` and shifts ``(B, N)``, one sample per seed."""
    matrices, shifts = [], []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape, generator=generator):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        q, _ = torch.linalg.qr(randn(N, N))
        values = eigenvalues(kind, radius, generator)
        matrix = torch.diag(values)
        if kind == 'complex':
            # Rotations by any angle, scaled.
            angles = torch.pi * torch.rand(N // 2, generator=generator)
            matrix = torch.block_diag(
                *(
                    values[2 * i]
                    * torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]).double()
                    for i, a in enumerate(angles)
                )
            )
        elif kind == 'non-normal':
            matrix = matrix + 0.3 / N**0.5 * randn(N, N).triu(1)
        matrices.append(q @ matrix @ q.T)
        shifts.append(randn(N))
    return torch.stack(matrices), torch.stack(shifts)


def evaluations(solver, kind, radius):
    """Returns how many evaluations each sample took, infinity where not solved."""
    matrix, shift = problem(kind, radius)
    solution = solver.solve(
        lambda z: torch.einsum('bij,bj->bi', matrix, z) + shift, torch.zeros_like(shift)
    )
    return torch.where(solution.converged, solution.n_evals.double(), torch.inf)


class _StopError(Exception):
    pass


@cache
def evaluations_of_scipy(kind, radius, memory):
    """The same for ``scipy.optimize.broyden1``, which restarts when it is full."""
    counts = []
    for matrix, shift in zip(*(part.numpy() for part in problem(kind, radius))):
        counts.append(torch.inf)
        residuals = []

        def g(z, matrix=matrix, shift=shift, residuals=residuals):
            fz = matrix @ z + shift
            residuals.append(np.linalg.norm(fz - z) / (np.linalg.norm(fz) + 1e-8))
            if residuals[-1] <= TOL or len(residuals) == BUDGET:
                raise _StopError
            return fz - z

        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises((_StopError, ValueError)):
                scipy.optimize.broyden1(
                    g,
                    np.zeros(N),
                    alpha=1.0,
                    max_rank=memory,
                    line_search=None,
                    f_tol=1e-300,
                    x_tol=1e-300,
                    maxiter=10 * BUDGET,
                )
        if residuals[-1] <= TOL:
            counts[-1] = len(residuals)
    return torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize(
    'memory', [10, *(pytest.param(m, marks=pytest.mark.slow) for m in (5, 20, 50))]
)
@pytest.mark.parametrize(('kind', 'radius'), PROBLEMS)
def test_broyden_solves_what_scipy_solves(kind, radius, memory):
    """The chain of updates goes on for twice as long, and costs at most that much."""
    ours = evaluations(BroydenSolver(BUDGET, TOL, memory=memory), kind, radius)
    theirs = evaluations_of_scipy(kind, radius, memory)
    if theirs.isfinite().all():
        assert ours.isfinite().all()
        assert ours.median() <= 2 * theirs.median()
    else:
        assert ours.isfinite().sum() >= theirs.isfinite().sum()


@pytest.mark.parametrize('memory', [10, 20, 50])
@pytest.mark.parametrize('kind', ['real', 'positive', 'outlier'])
def test_broyden_does_not_stall(kind, memory):
    ours = evaluations(BroydenSolver(BUDGET, TOL, memory=memory), kind, 0.999)
    assert ours.isfinite().all()


@pytest.mark.parametrize('kind', ['real', 'positive', 'outlier', 'complex'])
@pytest.mark.parametrize('radius', [0.9, 0.95])
@pytest.mark.parametrize('solver', [AndersonSolver, BroydenSolver])
def test_acceleration(solver, kind, radius):
    """Both need fewer evaluations than the plain iteration, on every problem."""
    plain = evaluations(PicardSolver(2 * BUDGET, TOL, damping=1), kind, radius)
    assert (evaluations(solver(BUDGET, TOL), kind, radius) < plain).all()


@pytest.mark.parametrize('solver', [AndersonSolver, BroydenSolver])
def test_one_eigenvalue_beyond_1(solver):
    """The plain iteration diverges."""
    assert evaluations(PicardSolver(BUDGET, TOL), 'outlier', 1.05).isinf().all()
    assert (evaluations(solver(BUDGET, TOL), 'outlier', 1.05) < 30).all()
