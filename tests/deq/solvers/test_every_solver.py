"""The rules of a method, tested on every solver of the table."""

import copy
import dataclasses
import pickle

import pytest
import torch
from mmengine.registry import TASK_UTILS

from mdeq_mm.deq import FixedPointSolver, MethodState, PicardSolver, SolveStatus
from mdeq_mm.deq.builder import build

from .problems import BATCH_SIZE, SIZE, Spy, contraction, linear, zeros
from .table import SOLVERS


@pytest.fixture(params=SOLVERS)
def entry(request):
    return request.param


@pytest.fixture
def make(entry):
    """Makes the solver; takes further settings as keywords."""
    return entry.make


class TestSettings:
    def test_general_ones_come_first(self, make):
        names = [item.name for item in dataclasses.fields(make())]
        general = [item.name for item in dataclasses.fields(FixedPointSolver)]
        assert names[: len(general)] == general

    @pytest.mark.parametrize(
        ('name', 'value'),
        [
            ('max_evals', 0),
            ('max_evals', 2.5),
            ('max_evals', True),
            ('tol', -1e-3),
            ('tol', float('nan')),
            ('stop_mode', 'relative'),
            ('check_interval', 0),
            ('returns', 'image'),
        ],
    )
    def test_wrong_value(self, make, name, value):
        with pytest.raises(ValueError, match=f'{name} must .*, got {value!r}'):
            make(**{name: value})

    def test_shown(self, make):
        shown = repr(make(max_evals=11))
        for name, value in dict(make.keywords, max_evals=11, tol=1e-3).items():
            assert f'{name}={value!r}' in shown

    def test_cannot_be_set(self, make):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make().max_evals = 4

    def test_compared_replaced_and_copied(self, make):
        solver = make(tol=1e-5)
        other = dataclasses.replace(solver, max_evals=7)
        assert other == make(tol=1e-5, max_evals=7) != solver
        for same in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
            assert same == solver
            assert hash(same) == hash(solver)

    def test_built_from_a_config(self, make):
        # By the class: a name may belong to another one by now, as docs/en/extend.md
        # registers the example solver, too.
        config = dict(make.keywords, type=make.func, max_evals=9)
        assert build(config, FixedPointSolver, 'forward_solver') == make(max_evals=9)
        assert TASK_UTILS.get(make.func.__name__).__name__ == make.func.__name__


class TestPauses:
    @pytest.mark.parametrize('compact', [False, True])
    def test_end_as_without_pauses(self, make, compact):
        spy = Spy(contraction())
        settings = dict(restrict=spy.restricted if compact else None)
        f, solver = spy.restricted(slice(None)), make(max_evals=14, tol=1e-3)
        expected = solver.solve(f, zeros(), **settings)
        n_calls = spy.n_calls
        *paused, found = solver.pauses(f, zeros(), **settings)
        assert spy.n_calls == 2 * n_calls
        for name in ('state', 'residual', 'status', 'n_evals', 'trace'):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        # Each sample has its best so far, also those that have left the batch.
        for number, solution in enumerate(paused, start=1):
            best = expected.trace[:number].min(0).values
            torch.testing.assert_close(solution.residual, best, rtol=0, atol=0)


class TestResults:
    def test_contraction(self, make):
        f = contraction()
        solution = make(max_evals=2000, tol=1e-10).solve(f, zeros())
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
    def test_linear_system(self, entry, spectrum):
        f, root = linear(spectrum)
        settings = dict(max_evals=3000, tol=1e-9, stop_mode='abs')
        solution = entry.make(**settings).solve(f, torch.zeros_like(root))
        assert solution.converged.all()
        # ||z - z*|| <= ||(I - A)^-1|| residual
        bound = 1e-9 / (1 - max(spectrum))
        assert ((solution.state - root).norm(dim=1) <= bound).all()
        if entry.accelerates:
            plain = PicardSolver(**settings, damping=1).solve(f, torch.zeros_like(root))
            assert (solution.n_evals <= plain.n_evals).all()

    def test_single_precision(self, make):
        f = contraction(torch.float32)
        solution = make(max_evals=500, tol=1e-5).solve(f, zeros(torch.float32))
        assert solution.converged.all()

    @pytest.mark.parametrize(
        ('dtype', 'expected'),
        [
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_dtype(self, make, dtype, expected):
        f = contraction(torch.float32)

        def narrow(z):
            assert z.dtype == expected
            return f(z.float()).to(dtype)

        solution = make(max_evals=40, tol=2e-2).solve(narrow, zeros(dtype))
        assert solution.state.dtype == solution.residual.dtype == expected
        assert solution.converged.all()

    def test_autocast_does_not_touch_the_solver(self, make):
        f = contraction(torch.float32)
        products = []

        def seen(z):
            products.append((z @ z.T).dtype)
            with torch.autocast('cpu', enabled=False):
                return f(z)

        solver = make(max_evals=200, tol=1e-5)
        plain = solver.solve(seen, zeros(torch.float32))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            mixed = solver.solve(seen, zeros(torch.float32))
        # f itself runs in what autocast says.
        assert set(products[: len(plain.trace)]) == {torch.float32}
        assert set(products[len(plain.trace) :]) == {torch.bfloat16}
        assert torch.equal(plain.state, mixed.state)
        assert torch.equal(plain.n_evals, mixed.n_evals)

    def test_abs_and_rel(self, make):
        f, root = linear([0.9, 0.3, -0.5])
        z0 = torch.zeros_like(root)
        absolute, relative = (
            make(max_evals=3, tol=0.0, stop_mode=mode).solve(f, z0)
            for mode in ('abs', 'rel')
        )
        assert torch.equal(absolute.trace[0], (f(z0) - z0).norm(dim=1))
        torch.testing.assert_close(
            relative.trace[0], absolute.trace[0] / (f(z0).norm(dim=1) + 1e-8)
        )

    def test_no_graph(self, make):
        f = contraction()
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        z0 = zeros().requires_grad_()
        solution = make(max_evals=5).solve(lambda z: weight * f(z), z0)
        for tensor in (solution.state, solution.residual, solution.trace):
            assert not tensor.requires_grad
        assert torch.is_grad_enabled()


class TestEvaluations:
    def test_start_at_the_solution(self, make):
        f, root = linear([0.5, 0.2, -0.4])
        spy = Spy(f)
        solution = make(max_evals=10, tol=1e-12).solve(spy, root)
        assert spy.n_calls == 1
        assert solution.converged.all()
        assert solution.n_evals.tolist() == [1, 1, 1]
        assert torch.equal(solution.state, root)

    def test_budget_of_one(self, make):
        f = contraction()
        spy = Spy(f)
        z0 = torch.ones_like(zeros())
        solution = make(max_evals=1, tol=1e-8, stop_mode='abs').solve(spy, z0)
        assert spy.n_calls == 1
        assert torch.equal(solution.state, z0)
        torch.testing.assert_close(solution.residual, (f(z0) - z0).norm(dim=1))
        assert (solution.status == SolveStatus.BUDGET_SPENT).all()
        assert all('budget spent' in message for message in solution.messages)

    @pytest.mark.parametrize('max_evals', [2, 3, 5, 12])
    def test_budget_is_hard(self, make, max_evals):
        spy = Spy(contraction())
        solution = make(max_evals=max_evals, tol=0.0).solve(spy, zeros())
        assert spy.n_calls == max_evals
        assert solution.trace.shape == (max_evals, BATCH_SIZE)
        assert (solution.n_evals == max_evals).all()
        # A budget of two already brings more than the initial guess.
        assert (solution.residual < solution.trace[0]).all()

    def test_calls_are_counted_exactly(self, make):
        spy = Spy(contraction())
        solution = make(max_evals=1000, tol=1e-6).solve(spy, zeros())
        assert spy.n_calls == solution.n_evals.max() == len(solution.trace)

    def test_kept_iterates(self, make):
        spy = Spy(contraction())
        solver = make(max_evals=12, tol=0)
        solution = solver.solve(spy, zeros(), keep=(1, 7, 40))
        assert set(solution.iterates) == {1, 7}
        for number, iterate in solution.iterates.items():
            assert torch.equal(iterate, spy.states[number - 1])
        assert solver.solve(spy, zeros()).iterates == {}

    def test_best_iterate_is_kept(self, make):
        """The residual oscillates: the last iterate is not the best.

        A method that changes an iterate in place destroys what the loop holds.
        """
        f, root = linear([-1.5, 0.5, 0.9])
        spy = Spy(f)
        solver = make(max_evals=7, tol=0.0, stop_mode='abs')
        solution = solver.solve(spy, torch.zeros_like(root))
        best = solution.trace.argmin(dim=0)
        for sample, index in enumerate(best.tolist()):
            assert torch.equal(solution.state[sample], spy.states[index][sample])
        assert torch.equal(solution.residual, solution.trace.min(dim=0).values)

    @pytest.mark.parametrize('compact', [False, True])
    def test_evaluation_of_the_best_iterate(self, make, compact):
        """It is one that the solve has made, and nothing else changes."""
        spy = Spy(contraction())
        solver = make(max_evals=4, tol=4e-2)
        settings = dict(restrict=spy.restricted if compact else None)
        f = spy.restricted(slice(None))
        iterate = solver.solve(f, zeros(), **settings)
        n_calls = spy.n_calls
        evaluation = dataclasses.replace(solver, returns='evaluation').solve(
            f, zeros(), **settings
        )
        assert spy.n_calls == 2 * n_calls
        assert iterate.converged.any()
        assert not iterate.converged.all()
        torch.testing.assert_close(evaluation.state, contraction()(iterate.state))
        for name in ('residual', 'status', 'n_evals', 'trace'):
            assert torch.equal(getattr(evaluation, name), getattr(iterate, name)), name

    def test_evaluation_before_a_breakdown(self, make):
        f = contraction()
        spy = Spy(lambda z: f(z) if spy.n_calls < 4 else torch.full_like(z, torch.nan))
        solver = make(max_evals=9, tol=0, returns='evaluation')
        with pytest.warns(RuntimeWarning, match='NaN or Inf'):
            solution = solver.solve(spy, zeros())
        best = solution.trace.argmin(dim=0)
        for sample, index in enumerate(best.tolist()):
            assert torch.equal(solution.state[sample], f(spy.states[index])[sample])

    def test_no_evaluation_is_finite(self, make):
        z0 = torch.ones_like(zeros())
        solver = make(returns='evaluation')
        with pytest.warns(RuntimeWarning, match='NaN or Inf'):
            solution = solver.solve(lambda z: z / 0, z0)
        assert torch.equal(solution.state, z0)

    def test_divergence(self, make):
        spy = Spy(lambda z: z + 1 + z**2)  # no fixed point at all
        z0 = torch.linspace(-2, 2, 5).unsqueeze(1).repeat(1, 3)
        solution = make(max_evals=60, tol=1e-6, stop_mode='abs').solve(spy, z0)
        assert not solution.converged.any()
        assert solution.state.isfinite().all()
        assert solution.residual.isfinite().all()
        assert torch.equal(solution.residual, solution.trace.min(dim=0).values)
        assert spy.n_calls <= 60


class TestSamplesAreOnTheirOwn:
    @pytest.mark.parametrize('compaction', [False, True])
    @pytest.mark.parametrize('interval', [None, 1, 2, 3])
    def test_no_samples(self, make, interval, compaction):
        """An empty batch has an empty solution, however rarely anybody looks."""
        rows = slice(0, 0)
        spy = Spy(contraction())
        solution = make(max_evals=9, check_interval=interval).solve(
            spy.restricted(rows),
            zeros()[rows],
            restrict=spy.restricted if compaction else None,
        )
        assert solution.state.shape == (0, SIZE)
        assert solution.status.shape == solution.n_evals.shape == (0,)
        assert solution.trace.shape == (interval or 1, 0)
        assert spy.n_calls == (interval or 1)

    def test_batch_independence(self, make):
        f = contraction()
        solver = make(max_evals=1000, tol=1e-8)
        together = solver.solve(f, zeros())
        assert together.n_evals.unique().numel() > 3
        for sample in range(BATCH_SIZE):
            rows = slice(sample, sample + 1)
            alone = solver.solve(lambda z, rows=rows: f(z, rows), zeros()[rows])
            assert alone.n_evals[0] == together.n_evals[sample]
            assert alone.status[0] == together.status[sample]
            error = (alone.state[0] - together.state[sample]).norm()
            assert error <= 1e-6 * alone.state.norm()

    def test_stopped_samples_are_frozen(self, make):
        spy = Spy(contraction())
        solution = make(max_evals=1000, tol=1e-6).solve(spy, zeros())
        for sample, count in enumerate(solution.n_evals.tolist()):
            for state in spy.states[count:]:
                assert torch.equal(state[sample], solution.state[sample])
            frozen = solution.trace[count:, sample]
            assert (frozen == solution.residual[sample]).all()

    @pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
    @pytest.mark.parametrize('first', [1, 2, 4])
    def test_breakdown_of_one_sample(self, make, bad, first):
        f = contraction()
        spy = Spy(f, breaks={3: range(first, 1000)}, bad=bad)
        solver = make(max_evals=500, tol=1e-8)
        solution = solver.solve(spy, zeros())
        assert solution.status[3] == SolveStatus.BROKEN_DOWN
        assert 'NaN or Inf' in solution.messages[3]
        assert solution.n_evals[3] == first
        assert solution.state.isfinite().all()
        assert not solution.trace.isnan().any()

        rows = torch.arange(BATCH_SIZE) != 3
        alone = solver.solve(lambda z: f(z, rows), zeros()[rows])
        assert solution.converged[rows].all()
        assert torch.equal(solution.n_evals[rows], alone.n_evals)
        torch.testing.assert_close(
            solution.state[rows], alone.state, rtol=1e-6, atol=1e-9
        )

    def test_kept_iterates_are_finite(self, make):
        spy = Spy(contraction(), breaks={1: [3]})
        solution = make(max_evals=6, tol=0).solve(spy, zeros(), keep=range(9))
        assert solution.status[1] == SolveStatus.BROKEN_DOWN
        for iterate in solution.iterates.values():
            assert iterate.isfinite().all()

    def test_stopped_samples_leave_the_batch(self, make):
        """With the results of the whole batch, and less work by what had stopped."""
        spy = Spy(contraction())
        solver = make(max_evals=2000, tol=1e-10)
        whole = solver.solve(contraction(), zeros())
        found = solver.solve(spy, zeros(), restrict=spy.restricted)
        assert found.inverse_jacobian is None
        for name in ('state', 'residual', 'trace'):
            torch.testing.assert_close(
                getattr(found, name), getattr(whole, name), rtol=0, atol=1e-9
            )
        assert torch.equal(found.status, whole.status)
        assert torch.equal(found.n_evals, whole.n_evals)
        assert spy.n_evals == whole.n_evals.sum()
        assert spy.n_evals <= 0.75 * BATCH_SIZE * whole.n_evals.max()

    def test_broken_samples_leave_the_batch(self, make):
        spy = Spy(contraction(), breaks={2: range(1, 2001)})
        solver = make(max_evals=2000, tol=1e-10)
        found = solver.solve(spy, zeros(), restrict=spy.restricted)
        assert found.status.tolist() == [0, 0, 2, 0, 0, 0, 0, 0]
        assert found.state.isfinite().all()

    @pytest.mark.parametrize('compaction', [False, True])
    def test_rare_looks_change_nothing(self, make, compaction):
        """Where a look waits for the device, most evaluations go without one."""
        found, spies = [], []
        for interval in (1, 3):
            # It breaks down once, and would go on well.
            spy = Spy(contraction(), breaks={3: [4]})
            solver = make(max_evals=40, tol=1e-4, check_interval=interval)
            restrict = spy.restricted if compaction else None
            found.append(solver.solve(spy, zeros(), restrict=restrict))
            spies.append(spy)
        often, rarely = found
        calls = [spy.n_calls for spy in spies]
        assert often.n_evals.max() == calls[0] <= calls[1] <= min(calls[0] + 2, 40)
        assert often.status[3] == SolveStatus.BROKEN_DOWN
        assert torch.equal(rarely.status, often.status)
        assert torch.equal(rarely.n_evals, often.n_evals)
        for x, y in (
            (rarely.state, often.state),
            (rarely.trace[: len(often.trace)], often.trace),
        ):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


class TestWhatItRemembers:
    def test_is_a_method_state_that_begins_with_the_batch(self, make):
        solver = make(max_evals=6)
        z = torch.rand(BATCH_SIZE, SIZE)
        state = solver.init(z)
        assert isinstance(state, MethodState)
        for _ in range(4):
            fz = torch.rand(BATCH_SIZE, SIZE)
            z = solver.step(state, z, fz, solver.residual(state, z, fz))
        tensors = [x for x in vars(state).values() if isinstance(x, torch.Tensor)]
        assert all(len(tensor) == BATCH_SIZE for tensor in tensors)

    def test_takes_steps_without_the_loop(self, make):
        """The three methods are public: the loop adds nothing to what they compute."""
        f = contraction()
        spy = Spy(f)
        solver = make(max_evals=6, tol=0.0)
        solver.solve(spy, zeros())
        z = zeros()
        state = solver.init(z)
        for seen in spy.states:
            assert torch.equal(z, seen)
            if seen is not spy.states[-1]:
                fz = f(z)
                z = solver.step(state, z, fz, solver.residual(state, z, fz))
