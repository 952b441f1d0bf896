"""What the methods with a history keep, and in which dtype."""

from dataclasses import replace

import pytest
import torch

from mdeq_mm.deq import AndersonSolver, BroydenSolver, SolveStatus
from mdeq_mm.deq.solvers.low_rank import allocate

DTYPES = [None, 'bfloat16']


@pytest.mark.parametrize(
    ('solver', 'n_states', 'n_plain'),
    [
        (AndersonSolver(40, window=5), 10, 1),
        (AndersonSolver(3, window=5), 6, 1),
        (BroydenSolver(40, memory=7), 8, 0),
        (BroydenSolver(5, memory=7), 4, 0),
    ],
)
@pytest.mark.parametrize('dtype', DTYPES)
def test_documented_size(solver, n_states, n_plain, dtype):
    """Of all that is kept: so many states, of which some are never rounded."""
    solver = replace(solver, history_dtype=dtype)
    z = torch.zeros(2, 1000)
    state = solver.init(z)
    for _ in range(12):
        fz = torch.rand_like(z)
        solver.step(state, z, fz, solver.residual(state, z, fz))
    sizes = [
        value.untyped_storage().nbytes()
        for value in vars(state).values()
        if isinstance(value, torch.Tensor) and value.shape[-1] == 1000
    ]
    rounded = 2 if dtype == 'bfloat16' else 4
    assert sum(sizes) == 2 * 1000 * ((n_states - n_plain) * rounded + n_plain * 4)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('memory', [10, 60])
@pytest.mark.parametrize('largest', [0.97, 0.99])
def test_broyden_where_convergence_is_slow(largest, memory, dtype):
    """Eigenvalues near 1 make its inverse run away unless the products it is built
    from are those of the steps as they are stored."""
    eigenvalues = torch.rand(400) * (largest + 0.3) - 0.3
    x = torch.randn(64, 400)
    solver = BroydenSolver(60, 1e-4, memory=memory, history_dtype=dtype)
    solution = solver.solve(lambda z: eigenvalues * z + x, torch.zeros_like(x))
    assert (solution.status != SolveStatus.BROKEN_DOWN).all()
    # Rounding errors of steps that are never dropped add up.
    assert (solution.residual < (1e-2 if dtype is None or memory == 10 else 0.1)).all()
    if largest == 0.97:
        assert solution.converged.float().mean() > 0.75


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', ['anderson', 'broyden'])
def test_memory_that_has_not_been_written_is_not_read(monkeypatch, name, dtype):
    matrix = torch.randn(12, 12) / 6
    scale = torch.tensor([[0.01], [0.9]])  # the first sample stops early
    x = torch.randn(2, 12)
    cls = dict(anderson=AndersonSolver, broyden=BroydenSolver)[name]
    solver = cls(30, 1e-6, history_dtype=dtype)

    def solve():
        return solver.solve(lambda z: scale * torch.tanh(z @ matrix) + x, 0 * x)

    expected = solve()
    assert expected.n_evals[0] < 7 < expected.n_evals[1]

    def full_of_nan(*args):
        return allocate(*args).fill_(torch.nan)

    monkeypatch.setattr(f'mdeq_mm.deq.solvers.{name}.allocate', full_of_nan)
    found = solve()
    assert torch.equal(found.state, expected.state)
    if name == 'broyden':
        inverses = [s.inverse_jacobian for s in (found, expected)]
        assert torch.equal(*(inverse.apply(x) for inverse in inverses))
