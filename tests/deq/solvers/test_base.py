"""Rules that hold for every solver, tested on every solver: a new one is one line."""

import math

import pytest
import torch

from mdeq_mm.deq import AndersonSolver, BroydenSolver, PicardSolver, SolveStatus

SOLVERS = [
    pytest.param(PicardSolver, {}, id='Picard'),
    pytest.param(PicardSolver, dict(damping=1), id='Picard-plain'),
    pytest.param(AndersonSolver, {}, id='Anderson'),
    pytest.param(AndersonSolver, dict(window=1), id='Anderson-window-1'),
    pytest.param(AndersonSolver, dict(window=2), id='Anderson-window-2'),
    pytest.param(AndersonSolver, dict(ridge=0.0, mixing=0.8), id='Anderson-no-ridge'),
    pytest.param(
        AndersonSolver, dict(history_dtype='bfloat16'), id='Anderson-bfloat16'
    ),
    pytest.param(BroydenSolver, {}, id='Broyden'),
    pytest.param(BroydenSolver, dict(memory=1), id='Broyden-memory-1'),
    pytest.param(BroydenSolver, dict(memory=1000), id='Broyden-full'),
    pytest.param(BroydenSolver, dict(history_dtype='bfloat16'), id='Broyden-bfloat16'),
]

SIZE = 40


class Counter:
    """Counts the calls of a function."""

    def __init__(self, f):
        self.f = f
        self.n_calls = 0

    def __call__(self, z):
        self.n_calls += 1
        return self.f(z)


def contraction(batch_size=8, dtype=torch.float64):
    """``tanh(A z) + b`` with samples of different difficulty."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
    scale = torch.linspace(0.05, 0.95, batch_size, dtype=torch.float64).unsqueeze(1)
    shift = torch.randn(batch_size, SIZE, generator=generator, dtype=torch.float64)
    matrix, scale, shift = matrix.to(dtype), scale.to(dtype), shift.to(dtype)
    return lambda z, rows=slice(None): (
        scale[rows] * torch.tanh(z @ matrix) + shift[rows]
    )


def linear(eigenvalues):
    """``A z + b`` of the given spectrum, and its root."""
    generator = torch.Generator().manual_seed(2)
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    )
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    shift = torch.randn(3, size, generator=generator, dtype=torch.float64)
    root = torch.linalg.solve(torch.eye(size) - matrix, shift.T).T
    return lambda z: z @ matrix.T + shift, root


@pytest.mark.parametrize(('cls', 'kwargs'), SOLVERS)
class TestEverySolver:
    def test_contraction(self, cls, kwargs):
        f = contraction()
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solution = cls(max_evals=2000, tol=1e-10, **kwargs).solve(f, z0)
        assert solution.converged.all()
        residual = (f(solution.state) - solution.state).norm(dim=1)
        norm = f(solution.state).norm(dim=1)
        torch.testing.assert_close(solution.residual, residual / (norm + 1e-8))
        assert (solution.residual <= 1e-10).all()

    @pytest.mark.parametrize(
        'spectrum',
        [
            pytest.param([0.9, 0.5, 0.1, -0.3, -0.6], id='linear'),
            pytest.param([0.98, 0.9, 0.5, 1e-3, 0.0, -0.5, -0.95], id='stiff'),
        ],
    )
    def test_linear_system(self, cls, kwargs, spectrum):
        f, root = linear(spectrum)
        solver = cls(max_evals=3000, tol=1e-9, stop_mode='abs', **kwargs)
        solution = solver.solve(f, torch.zeros_like(root))
        assert solution.converged.all()
        # ||z - z*|| <= ||(I - A)^-1|| residual
        bound = 1e-9 / (1 - max(spectrum))
        assert ((solution.state - root).norm(dim=1) <= bound).all()
        plain = PicardSolver(3000, 1e-9, 'abs', damping=1)
        picard = plain.solve(f, torch.zeros_like(root))
        # Rounded steps cost Broyden's method evaluations where convergence is slow.
        rounded = cls is BroydenSolver and 'history_dtype' in kwargs
        if cls is not PicardSolver and kwargs.get('window') != 1 and not rounded:
            assert (solution.n_evals <= picard.n_evals).all()

    def test_kept_iterates(self, cls, kwargs):
        f = contraction()
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        seen = []

        def noted(z):
            seen.append(z)
            return f(z)

        solver = cls(max_evals=12, tol=0, **kwargs)
        solution = solver.solve(noted, z0, keep=(1, 7, 40))
        assert set(solution.iterates) == {1, 7}
        for number, iterate in solution.iterates.items():
            assert torch.equal(iterate, seen[number - 1])
        assert solver.solve(f, z0).iterates == {}

    def test_stopped_samples_leave_the_batch(self, cls, kwargs):
        """With the results of the whole batch, and less work by what had stopped."""
        f = contraction()
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        n_rows = []

        def counted(rows):
            def restricted(z):
                n_rows.append(len(z))
                return f(z, rows)

            return restricted

        solver = cls(max_evals=2000, tol=1e-10, **kwargs)
        whole = solver.solve(f, z0)
        every = torch.arange(8)
        found = solver.solve(counted(every), z0, restrict=counted)
        assert found.inverse_jacobian is None
        for name in ('state', 'residual', 'trace'):
            torch.testing.assert_close(
                getattr(found, name), getattr(whole, name), rtol=0, atol=1e-9
            )
        assert torch.equal(found.status, whole.status)
        assert torch.equal(found.n_evals, whole.n_evals)
        assert sum(n_rows) == whole.n_evals.sum()
        assert sum(n_rows) <= 0.75 * 8 * whole.n_evals.max()

    def test_broken_samples_leave_the_batch(self, cls, kwargs):
        f = contraction()

        def breaking(rows):
            def restricted(z):
                fz = f(z, rows)
                fz[rows == 2] = torch.nan
                return fz

            return restricted

        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solver = cls(max_evals=2000, tol=1e-10, **kwargs)
        found = solver.solve(breaking(torch.arange(8)), z0, restrict=breaking)
        assert found.status.tolist() == [0, 0, 2, 0, 0, 0, 0, 0]
        assert found.state.isfinite().all()

    @pytest.mark.parametrize('compaction', [False, True])
    def test_rare_looks_change_nothing(self, cls, kwargs, compaction, monkeypatch):
        """Where a look waits for the device, most evaluations go without one."""
        f = contraction()
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)

        def breaking(rows):
            def restricted(z):
                fz = f(z, rows)
                fz[rows == 3] *= math.nan if calls[-1] == 3 else 1
                calls[-1] += 1
                return fz

            return restricted

        solver = cls(max_evals=40, tol=1e-4, **kwargs)
        restrict = breaking if compaction else None
        found, calls = [], []
        for interval in (1, 3):
            monkeypatch.setattr(cls, 'check_interval', interval)
            calls.append(0)
            found.append(solver.solve(breaking(torch.arange(8)), z0, restrict=restrict))
        often, rarely = found
        assert often.n_evals.max() == calls[0] <= calls[1] <= min(calls[0] + 2, 40)
        assert often.status[3] == SolveStatus.BROKEN_DOWN
        assert torch.equal(rarely.status, often.status)
        assert torch.equal(rarely.n_evals, often.n_evals)
        for x, y in (
            (rarely.state, often.state),
            (rarely.trace[: len(often.trace)], often.trace),
        ):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-9)

    def test_keep_and_restrict_exclude_each_other(self, cls, kwargs):
        with pytest.raises(ValueError, match='keep and restrict'):
            cls(**kwargs).solve(
                torch.tanh, torch.zeros(1, 2), keep=(1,), restrict=lambda rows: None
            )

    def test_kept_iterates_are_finite(self, cls, kwargs):
        f = contraction()

        def breaking(z):
            fz = f(z)
            if breaking.n_calls == 2:
                fz[1] = torch.nan
            breaking.n_calls += 1
            return fz

        breaking.n_calls = 0
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solution = cls(max_evals=6, tol=0, **kwargs).solve(breaking, z0, keep=range(9))
        assert solution.status[1] == SolveStatus.BROKEN_DOWN
        for iterate in solution.iterates.values():
            assert iterate.isfinite().all()

    def test_divergence(self, cls, kwargs):
        f = Counter(lambda z: z + 1 + z**2)  # no fixed point at all
        z0 = torch.linspace(-2, 2, 5).unsqueeze(1).repeat(1, 3)
        solution = cls(max_evals=60, tol=1e-6, stop_mode='abs', **kwargs).solve(f, z0)
        assert not solution.converged.any()
        assert solution.state.isfinite().all()
        assert solution.residual.isfinite().all()
        assert torch.equal(solution.residual, solution.trace.min(dim=0).values)
        assert f.n_calls <= 60

    @pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
    @pytest.mark.parametrize('first_bad_call', [1, 2, 4])
    def test_breakdown_of_one_sample(self, cls, kwargs, bad, first_bad_call):
        healthy = contraction()
        rows = torch.arange(8) != 3

        def f(z):
            f.n_calls += 1
            fz = healthy(z)
            if f.n_calls >= first_bad_call:
                fz[3] = bad
            return fz

        f.n_calls = 0
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solver = cls(max_evals=500, tol=1e-8, **kwargs)
        solution = solver.solve(f, z0)
        assert solution.status[3] == SolveStatus.BROKEN_DOWN
        assert 'NaN or Inf' in solution.messages[3]
        assert solution.n_evals[3] == first_bad_call
        assert solution.state.isfinite().all()
        assert not solution.trace.isnan().any()

        alone = solver.solve(lambda z: healthy(z, rows), z0[rows])
        assert solution.converged[rows].all()
        assert torch.equal(solution.n_evals[rows], alone.n_evals)
        torch.testing.assert_close(
            solution.state[rows], alone.state, rtol=1e-6, atol=1e-9
        )

    def test_start_at_the_solution(self, cls, kwargs):
        f, root = linear([0.5, 0.2, -0.4])
        f = Counter(f)
        solution = cls(max_evals=10, tol=1e-12, **kwargs).solve(f, root)
        assert f.n_calls == 1
        assert solution.converged.all()
        assert solution.n_evals.tolist() == [1, 1, 1]
        assert torch.equal(solution.state, root)

    def test_budget_of_one(self, cls, kwargs):
        f = Counter(contraction())
        z0 = torch.ones(8, SIZE, dtype=torch.float64)
        solution = cls(max_evals=1, tol=1e-8, stop_mode='abs', **kwargs).solve(f, z0)
        assert f.n_calls == 1
        assert torch.equal(solution.state, z0)
        torch.testing.assert_close(solution.residual, (f(z0) - z0).norm(dim=1))
        assert (solution.status == SolveStatus.BUDGET_SPENT).all()
        assert all('budget spent' in message for message in solution.messages)

    @pytest.mark.parametrize('max_evals', [2, 3, 5, 12])
    def test_budget_is_hard(self, cls, kwargs, max_evals):
        f = Counter(contraction())
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solution = cls(max_evals=max_evals, tol=0.0, **kwargs).solve(f, z0)
        assert f.n_calls == max_evals
        assert solution.trace.shape == (max_evals, 8)
        assert (solution.n_evals == max_evals).all()
        # A budget of two already brings more than the initial guess.
        assert (solution.residual < solution.trace[0]).all()

    def test_best_iterate_is_kept(self, cls, kwargs):
        """The residual oscillates: the last iterate is not the best."""
        f, root = linear([-1.5, 0.5, 0.9])
        visited = []

        def spy(z):
            visited.append(z.clone())
            return f(z)

        solution = cls(max_evals=7, tol=0.0, stop_mode='abs', **kwargs).solve(
            spy, torch.zeros_like(root)
        )
        best = solution.trace.argmin(dim=0)
        for sample, index in enumerate(best.tolist()):
            assert torch.equal(solution.state[sample], visited[index][sample])
        assert torch.equal(solution.residual, solution.trace.min(dim=0).values)

    def test_batch_independence(self, cls, kwargs):
        f = contraction()
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solver = cls(max_evals=1000, tol=1e-8, **kwargs)
        together = solver.solve(f, z0)
        assert together.n_evals.unique().numel() > 3
        for sample in range(8):
            rows = slice(sample, sample + 1)
            alone = solver.solve(lambda z, rows=rows: f(z, rows), z0[rows])
            assert alone.n_evals[0] == together.n_evals[sample]
            assert alone.status[0] == together.status[sample]
            error = (alone.state[0] - together.state[sample]).norm()
            assert error <= 1e-6 * alone.state.norm()

    def test_stopped_samples_are_frozen(self, cls, kwargs):
        f = contraction()
        states = []

        def spy(z):
            states.append(z.clone())
            return f(z)

        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solution = cls(max_evals=1000, tol=1e-6, **kwargs).solve(spy, z0)
        for sample, count in enumerate(solution.n_evals.tolist()):
            for state in states[count:]:
                assert torch.equal(state[sample], solution.state[sample])
            frozen = solution.trace[count:, sample]
            assert (frozen == solution.residual[sample]).all()

    def test_calls_are_counted_exactly(self, cls, kwargs):
        f = Counter(contraction())
        z0 = torch.zeros(8, SIZE, dtype=torch.float64)
        solution = cls(max_evals=1000, tol=1e-6, **kwargs).solve(f, z0)
        assert f.n_calls == solution.n_evals.max() == len(solution.trace)

    def test_no_graph(self, cls, kwargs):
        f = contraction()
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        z0 = torch.zeros(8, SIZE, dtype=torch.float64, requires_grad=True)
        solution = cls(max_evals=5, **kwargs).solve(lambda z: weight * f(z), z0)
        for tensor in (solution.state, solution.residual, solution.trace):
            assert not tensor.requires_grad
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize(
        ('dtype', 'expected'),
        [
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_dtype(self, cls, kwargs, dtype, expected):
        f = contraction(dtype=torch.float32)

        def half_precision(z):
            assert z.dtype == expected
            return f(z.float()).to(dtype)

        z0 = torch.zeros(8, SIZE, dtype=dtype)
        solution = cls(max_evals=40, tol=2e-2, **kwargs).solve(half_precision, z0)
        assert solution.state.dtype == solution.residual.dtype == expected
        assert solution.converged.all()

    def test_autocast_does_not_touch_the_solver(self, cls, kwargs):
        f = contraction(dtype=torch.float32)
        z0 = torch.zeros(8, SIZE)
        solver = cls(max_evals=200, tol=1e-5, **kwargs)

        products = set()

        def seen(z):
            products.add((z @ z.T).dtype)
            with torch.autocast('cpu', enabled=False):
                return f(z)

        plain = solver.solve(seen, z0)
        assert products == {torch.float32}
        products.clear()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            mixed = solver.solve(seen, z0)
        assert products == {torch.bfloat16}
        assert torch.equal(plain.state, mixed.state)
        assert torch.equal(plain.n_evals, mixed.n_evals)

    def test_single_precision(self, cls, kwargs):
        f = contraction(dtype=torch.float32)
        solution = cls(max_evals=500, tol=1e-5, **kwargs).solve(f, torch.zeros(8, SIZE))
        assert solution.converged.all()

    def test_abs_and_rel(self, cls, kwargs):
        f, root = linear([0.9, 0.3, -0.5])
        z0 = torch.zeros_like(root)
        absolute = cls(3, 0.0, 'abs', **kwargs).solve(f, z0)
        relative = cls(3, 0.0, 'rel', **kwargs).solve(f, z0)
        z = z0
        norms = torch.stack([f(z).norm(dim=1)])
        torch.testing.assert_close(
            relative.trace[:1], absolute.trace[:1] / (norms + 1e-8)
        )

    @pytest.mark.parametrize(
        ('argument', 'value'),
        [
            ('max_evals', 0),
            ('max_evals', 2.5),
            ('tol', -1e-3),
            ('tol', float('nan')),
            ('stop_mode', 'relative'),
        ],
    )
    def test_wrong_argument(self, cls, kwargs, argument, value):
        with pytest.raises(ValueError, match=f'{argument} must .*, got'):
            cls(**{argument: value}, **kwargs)

    def test_wrong_state(self, cls, kwargs):
        solver = cls(**kwargs)
        with pytest.raises(ValueError, match=r'z0 must .* got .*\(3, 4, 5\)'):
            solver.solve(lambda z: z, torch.zeros(3, 4, 5))
        with pytest.raises(ValueError, match=r'z0 must .* got torch.int64'):
            solver.solve(lambda z: z, torch.zeros(3, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match=r'f must .*\(3, 4\), got \(3, 5\)'):
            solver.solve(lambda z: torch.zeros(3, 5), torch.zeros(3, 4))

    def test_settings_are_shown(self, cls, kwargs):
        shown = repr(cls(max_evals=11, **kwargs))
        assert 'max_evals=11' in shown
        for key, value in kwargs.items():
            assert f'{key}={value!r}' in shown
