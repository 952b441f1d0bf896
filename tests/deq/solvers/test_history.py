import pytest
import torch

from mdeq_mm.deq import AndersonSolver, BroydenSolver, SolveStatus
from mdeq_mm.deq.solvers.history import (
    add_combination_,
    allocate,
    batched_dots,
    choose,
)

DTYPES = ['float32', 'bfloat16']


@pytest.mark.parametrize('size', [3, 8, 100])
@pytest.mark.parametrize('dtype', DTYPES)
class TestProducts:
    def test_dot(self, size, dtype):
        rows = torch.randn(2, 5, size).to(getattr(torch, dtype))
        xs = torch.randn(2, size), rows[:, 2]
        for x, products in zip(xs, batched_dots(rows, *xs)):
            expected = torch.einsum('bmn,bn->bm', rows.double(), x.double())
            torch.testing.assert_close(products, expected.float())

    def test_combination(self, size, dtype):
        rows = torch.randn(2, 5, size).to(getattr(torch, dtype))
        x, weights = torch.randn(2, size), torch.randn(2, 5)
        expected = x + torch.einsum('bmn,bm->bn', rows.double(), weights.double())
        assert add_combination_(x, weights, rows) is x
        torch.testing.assert_close(x, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_choice_lets_nothing_through(bad):
    mask = torch.tensor([True, False, True])
    new, old = torch.full((3, 4), bad), torch.full((3, 4), bad)
    new[mask], old[~mask] = 1.0, 2.0
    assert choose(mask, new, old).tolist() == [[1.0] * 4, [2.0] * 4, [1.0] * 4]


@pytest.mark.parametrize(
    ('solver', 'n_states', 'n_plain'),
    [
        (AndersonSolver(40, window=5), 10, 1),
        (AndersonSolver(3, window=5), 6, 1),
        (BroydenSolver(40, memory=7), 8, 0),
        (BroydenSolver(5, memory=7), 4, 0),
    ],
)
@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_documented_size(solver, n_states, n_plain, dtype):
    """Of the whole history: so many states, of which some are never rounded."""
    solver = type(solver)(**{**vars(solver), 'history_dtype': dtype})
    z = torch.zeros(2, 1000)
    history = solver._init_history(z)
    for _ in range(12):
        solver._advance(history, z, torch.rand_like(z), torch.rand_like(z), None)
    sizes = [
        value.untyped_storage().nbytes()
        for value in vars(history).values()
        if isinstance(value, torch.Tensor) and value.shape[-1] == 1000
    ]
    rounded = 2 if dtype == 'bfloat16' else 4
    assert sum(sizes) == 2 * 1000 * ((n_states - n_plain) * rounded + n_plain * 4)


@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
@pytest.mark.parametrize('memory', [10, 60])
@pytest.mark.parametrize('largest', [0.97, 0.99])
def test_broyden_where_convergence_is_slow(largest, memory, dtype):
    """Eigenvalues near 1 make its inverse run away unless the products it is built
    from are those of the steps as they are stored."""
    eigenvalues = torch.rand(400) * (largest + 0.3) - 0.3
    x = torch.randn(256, 400)
    solver = BroydenSolver(60, 1e-4, memory=memory, history_dtype=dtype)
    solution = solver.solve(lambda z: eigenvalues * z + x, torch.zeros_like(x))
    assert (solution.status != SolveStatus.BROKEN_DOWN).all()
    # Rounding errors of steps that are never dropped add up.
    assert (solution.residual < (1e-2 if dtype is None or memory == 10 else 0.1)).all()
    if largest == 0.97:
        assert solution.converged.float().mean() > 0.75


@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
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


@pytest.mark.parametrize('cls', [AndersonSolver, BroydenSolver])
def test_wrong_dtype(cls):
    message = "history_dtype must be None or 'bfloat16', got 'int8'"
    with pytest.raises(ValueError, match=message):
        cls(history_dtype='int8')
