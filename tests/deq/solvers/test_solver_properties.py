"""What holds for every solver in the table, whatever the problem."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st

from mdeq_mm.deq import SolveStatus
from mdeq_mm.deq.solvers.loop import norms

from ...properties import BATCH_SIZES, SCALES, SEEDS, generator_of, holds
from .table import SOLVERS

DTYPES = st.sampled_from([torch.float32, torch.float64])
STOP_MODES = st.sampled_from(['abs', 'rel'])
INTERVALS = st.sampled_from([None, 1, 2, 3, 7])


@pytest.fixture(params=SOLVERS)
def make(request):
    return request.param.make


@dataclass
class Problem:
    """``A z + b``, with a matrix and a shift of its own for each sample.

    Attributes:
        matrix (Tensor): ``A``, ``(B, N, N)``, float64.
        shift (Tensor): ``b``, ``(B, N)``, float64.
        lipschitz (float): The largest norm of the matrices.
        z0 (Tensor): Where to start, ``(B, N)``, in the dtype of the solve.
        breaks (dict): By the number of a sample, the call in which ``f`` returns what
            is no finite number, and the number of the entry and its value.
    """

    matrix: torch.Tensor
    shift: torch.Tensor
    lipschitz: float
    z0: torch.Tensor
    breaks: dict

    def __post_init__(self):
        self.calls = []

    @property
    def root(self):
        """The fixed points, ``(B, N)``, float64."""
        system = torch.eye(self.shift.shape[1], dtype=torch.float64) - self.matrix
        return torch.linalg.solve(system, self.shift.unsqueeze(2)).squeeze(2)

    def restrict(self, rows):
        matrix, shift = self.matrix[rows], self.shift[rows]
        matrix, shift = matrix.to(self.z0.dtype), shift.to(self.z0.dtype)

        def f(z):
            self.calls.append(z.clone())
            # A sum of products for each entry, in one order whatever the batch.
            fz = shift.clone()
            for column in range(shift.shape[1]):
                fz = fz + matrix[:, :, column] * z[:, column : column + 1]
            for sample, (call, entry, value) in self.breaks.items():
                if len(self.calls) >= call:
                    fz[rows == sample, entry] = value
            return fz

        return f

    def solve(self, solver, restrict=False, **kwargs):
        """Returns the solution; what was evaluated is in ``calls``."""
        self.calls = []
        if restrict:
            kwargs['restrict'] = self.restrict
        with warnings.catch_warnings():
            # Breakdowns are said, which is tested elsewhere.
            warnings.filterwarnings('ignore', 'The function whose fixed point')
            rows = torch.arange(len(self.shift))
            return solver.solve(self.restrict(rows), self.z0, **kwargs)

    def select(self, rows):
        return Problem(
            self.matrix[rows], self.shift[rows], self.lipschitz, self.z0[rows], {}
        )


@st.composite
def problems(draw, lipschitz=(0.0, 0.3, 0.8), break_some=False, least=0):
    """Problems; the norms of what is sought in them are near 1."""
    batch_size = draw(BATCH_SIZES.filter(lambda size: size >= least))
    size = draw(st.sampled_from([1, 2, 5, 17]))
    generator = generator_of(draw(SEEDS))
    dtype, norm = draw(DTYPES), draw(st.sampled_from(lipschitz))
    matrix = torch.randn(
        batch_size, size, size, generator=generator, dtype=torch.float64
    )
    # The first sample is the easiest, so that they stop one by one.
    sizes = norm * torch.linspace(0.1, 1, batch_size + 1, dtype=torch.float64)[1:]
    sizes = sizes / torch.linalg.matrix_norm(matrix, 2)
    matrix = sizes[:, None, None] * matrix
    # The solve rounds nothing of its problem.
    matrix = matrix.float().double()
    norm = max(torch.linalg.matrix_norm(matrix, 2).tolist(), default=norm)
    shift = torch.randn(batch_size, size, generator=generator).double()
    z0 = torch.randn(batch_size, size, generator=generator)
    z0 = z0 * draw(st.sampled_from([0.0, 1.0]))
    breaks = {}
    if break_some and batch_size:
        values = st.sampled_from([torch.nan, torch.inf, -torch.inf])
        breaks[draw(st.integers(0, batch_size - 1))] = (
            draw(st.integers(1, 6)),
            draw(st.integers(0, size - 1)),
            draw(values),
        )
    return Problem(matrix, shift, norm, z0.to(dtype), breaks)


@holds(12, problem=problems(), stop_mode=STOP_MODES, interval=INTERVALS)
def test_fixed_point(make, problem, stop_mode, interval):
    """It is as near as its residual says: within residual / (1 - lipschitz)."""
    eps = torch.finfo(problem.z0.dtype).eps
    tol = eps**0.5
    solver = make(1000, tol, stop_mode, interval)
    solution = problem.solve(solver)
    assert solution.state.shape == problem.z0.shape
    assert solution.state.dtype == solution.residual.dtype == problem.z0.dtype
    assert solution.residual.shape == (len(problem.z0),)
    assert solution.trace.shape == (len(problem.calls), len(problem.z0))
    assert solution.converged.all()
    root, size = problem.root, problem.z0.shape[1]
    error = (solution.state.double() - root).norm(dim=1)
    residual = solution.residual.double()
    norm = root.norm(dim=1) + problem.shift.norm(dim=1) + error
    if stop_mode == 'rel':
        residual = residual * norm
    # A sum of n products is off by n roundings of the largest at most.
    rounding = (size + 2) ** 1.5 * eps * norm
    assert (error <= (residual + rounding) / (1 - problem.lipschitz)).all()


@holds(
    12,
    problem=problems((0.0, 0.8, 3.0), break_some=True),
    budget=st.sampled_from([1, 2, 3, 8, 25]),
    tol=st.sampled_from([0.0, 1e-4, 0.3]),
    stop_mode=STOP_MODES,
    interval=INTERVALS,
    restrict=st.booleans(),
)
def test_books(make, problem, budget, tol, stop_mode, interval, restrict):
    """Counts, trace, residuals and statuses say what has happened, and nothing else."""
    solver = make(budget, tol, stop_mode, interval)
    keep = {} if restrict else dict(keep=(1, 2, 5, 99))
    solution = problem.solve(solver, restrict, **keep)
    n_calls, batch_size = len(problem.calls), len(problem.z0)
    assert 1 <= n_calls <= budget
    assert solution.trace.shape == (n_calls, batch_size)
    assert not solution.trace.isnan().any()
    assert set(solution.iterates) == {n for n in keep.get('keep', ()) if n <= n_calls}
    assert solution.state.isfinite().all()
    if interval in (None, 1) and batch_size:
        assert n_calls == solution.n_evals.max()

    function = problem.select(slice(None)).restrict(torch.arange(batch_size))
    fz = function(solution.state)
    actual = (fz.double() - solution.state.double()).norm(dim=1)
    if stop_mode == 'rel':
        actual = actual / (fz.double().norm(dim=1) + 1e-8)
    for row in range(batch_size):
        count, status = solution.n_evals[row].item(), solution.status[row].item()
        trace, residual = solution.trace[:, row], solution.residual[row]
        assert 1 <= count <= n_calls
        assert residual == trace[:count].min()
        assert (trace[count:] == residual).all()
        if status == SolveStatus.CONVERGED:
            assert residual <= tol
            assert (trace[: count - 1] > tol).all()
        elif status == SolveStatus.BUDGET_SPENT:
            assert count == n_calls == budget
            assert residual > tol
        else:
            assert status == SolveStatus.BROKEN_DOWN
            assert row in problem.breaks
            assert count == problem.breaks[row][0]
        if residual.isfinite():
            torch.testing.assert_close(
                residual.double(), actual[row], rtol=1e-5, atol=1e-5 * (1 + actual[row])
            )
        else:
            assert torch.equal(solution.state[row], problem.z0[row])
    for number, iterate in solution.iterates.items():
        seen, running = problem.calls[number - 1], solution.n_evals >= number
        whole = running & (solution.status != SolveStatus.BROKEN_DOWN)
        assert torch.equal(iterate[whole], seen[whole])
        assert iterate.isfinite().all()


@holds(
    20,
    problem=problems((0.3, 0.8), least=2),
    restrict=st.booleans(),
    interval=INTERVALS,
    data=st.data(),
)
@pytest.mark.slow
def test_order_and_company(make, problem, restrict, interval, data):
    """Samples come out in any order, and alone, as they do together."""
    solver = make(30, 1e-3, 'rel', interval)
    together = problem.solve(solver, restrict)
    size = len(problem.z0)
    rows = torch.tensor(data.draw(st.permutations(range(size))))
    permuted = problem.select(rows).solve(solver, restrict)
    for name in ('state', 'residual', 'status', 'n_evals'):
        assert torch.equal(getattr(permuted, name), getattr(together, name)[rows]), name
    alone = problem.select(rows[:1]).solve(solver, restrict)
    eps = torch.finfo(problem.z0.dtype).eps
    assert alone.status[0] == together.status[rows[0]]
    assert alone.n_evals[0] == together.n_evals[rows[0]]
    error = (alone.state[0] - together.state[rows[0]]).norm()
    assert error <= 1e3 * eps * (1 + together.state[rows[0]].norm())


@holds(10, problem=problems(), interval=INTERVALS, stop_mode=STOP_MODES)
def test_compaction(make, problem, interval, stop_mode):
    """It changes nothing that is found, whoever leaves the batch and when."""
    solver = make(30, 1e-3, stop_mode, interval)
    whole, compact = (problem.solve(solver, restrict) for restrict in (False, True))
    assert torch.equal(whole.status, compact.status)
    assert torch.equal(whole.n_evals, compact.n_evals)
    eps = torch.finfo(problem.z0.dtype).eps
    for name in ('state', 'trace'):
        torch.testing.assert_close(
            getattr(whole, name), getattr(compact, name), rtol=0, atol=1e3 * eps
        )


@holds(
    12,
    problem=problems((0.3, 0.8), break_some=True, least=2),
    interval=INTERVALS,
    stop_mode=STOP_MODES,
)
def test_breakdown_of_one_sample(make, problem, interval, stop_mode):
    """The others are to the bit what they are without it."""
    solver = make(20, 1e-3, stop_mode, interval)
    broken = problem.solve(solver)
    problem.breaks = {row: (99, *rest) for row, (_, *rest) in problem.breaks.items()}
    whole = problem.solve(solver)
    (bad,) = problem.breaks
    others = torch.arange(len(problem.z0)) != bad
    for name in ('state', 'residual', 'status', 'n_evals'):
        x, y = getattr(broken, name)[others], getattr(whole, name)[others]
        assert torch.equal(x, y), name
    assert broken.state.isfinite().all()


@holds(15, problem=problems((0.3, 0.5)), scale=SCALES, interval=INTERVALS)
def test_scale(make, problem, scale, interval):
    """Of any scale, nothing breaks down, and what a plain iteration finds is found."""
    problem.shift, problem.z0 = problem.shift * scale, problem.z0 * scale
    solution = problem.solve(make(200, 1e-3 * scale, 'abs', interval))
    assert solution.converged.all()
    error = (solution.state.double() - problem.root).norm(dim=1)
    assert (error <= 2.1 * 1e-3 * scale).all()


@holds(10, problem=problems((0.3, 0.8)), exponent=st.integers(-20, 20))
def test_powers_of_two(make, problem, exponent):
    """While squares stay in range, the scale changes nothing but the scale."""
    scale = 2.0**exponent
    plain = problem.solve(make(12, 1e-3, 'abs'))
    problem.shift, problem.z0 = problem.shift * scale, problem.z0 * scale
    scaled = problem.solve(make(12, 1e-3 * scale, 'abs'))
    assert torch.equal(scaled.n_evals, plain.n_evals)
    assert torch.equal(scaled.state, plain.state * scale)
    assert torch.equal(scaled.trace, plain.trace * scale)


@holds(
    60,
    batch_size=BATCH_SIZES,
    size=st.integers(1, 40),
    dtype=DTYPES,
    scales=st.lists(SCALES, min_size=5, max_size=5),
    seed=SEEDS,
)
def test_norms(batch_size, size, dtype, scales, seed):
    """They are those of float64, each by itself."""
    x = torch.randn(batch_size, size, generator=generator_of(seed), dtype=torch.float64)
    x = (x * torch.tensor(scales, dtype=torch.float64)[:batch_size, None]).to(dtype)
    expected = x.double().norm(dim=1)
    actual = norms(x)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    for row in range(batch_size):
        assert torch.equal(norms(x[row : row + 1])[0], actual[row])
