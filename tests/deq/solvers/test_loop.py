"""The rules of the loop, tested once, on the simplest method."""

import weakref

import pytest
import torch
from torch.autograd import forward_ad

from mdeq_mm.deq import FixedPointSolver, MethodState, SolveStatus
from mdeq_mm.deq.autocast import autocast_dtype
from mdeq_mm.deq.solvers import loop
from mdeq_mm.deq.solvers.loop import norms
from mdeq_mm.deq.solvers.samples import Samples, choose

from .problems import BATCH_SIZE, Spy, contraction, zeros


def contraction_of_rows(z, rows=slice(None)):
    return 0.5 * z + torch.arange(1.0, BATCH_SIZE + 1).double()[rows].unsqueeze(1)


class Halfway(FixedPointSolver):
    def step(self, state, z, fz, g):
        return (z + fz) / 2


class TestStopping:
    def test_residual_of_exactly_the_tolerance_has_converged(self):
        spy = Spy(lambda z: z + torch.tensor([[2.0], [2.25]]))
        solver = Halfway(max_evals=3, tol=2.0, stop_mode='abs')
        solution = solver.solve(spy, torch.zeros(2, 1))
        assert solution.residual.tolist() == [2.0, 2.25]
        assert solution.status.tolist() == [
            SolveStatus.CONVERGED,
            SolveStatus.BUDGET_SPENT,
        ]
        assert solution.n_evals.tolist() == [1, 3]

    def test_tolerance_of_zero(self):
        """An exact fixed point stops; anything else spends the budget."""
        x = torch.tensor([[0.0], [1.0]])
        solution = Halfway(max_evals=4, tol=0.0).solve(lambda z: z / 2 + x, 0 * x)
        assert solution.status.tolist() == [
            SolveStatus.CONVERGED,
            SolveStatus.BUDGET_SPENT,
        ]
        assert solution.n_evals.tolist() == [1, 4]

    def test_ends_when_the_last_sample_has_stopped(self):
        spy = Spy(contraction(), breaks={5: [2]})
        solution = Halfway(max_evals=500, tol=1e-6).solve(spy, zeros())
        assert spy.n_calls == len(solution.trace) == solution.n_evals.max() < 500
        assert solution.n_evals[5] == 2

    def test_nobody_runs_in_a_solution(self):
        for max_evals in (1, 30):
            solution = Halfway(max_evals=max_evals, tol=1e-2).solve(
                contraction(), zeros()
            )
            assert (solution.status != SolveStatus.RUNNING).all()

    def test_breakdown_at_once_leaves_the_initial_state(self):
        z0 = torch.ones(2, 3)
        solution = Halfway().solve(lambda z: z * torch.nan, z0)
        assert (solution.status == SolveStatus.BROKEN_DOWN).all()
        assert torch.equal(solution.state, z0)
        assert solution.residual.isinf().all()
        assert solution.trace.tolist() == [[torch.inf, torch.inf]]

    def test_broken_sample_does_not_come_back(self):
        spy = Spy(contraction(), breaks={0: [3]})
        solution = Halfway(max_evals=8, tol=0.0).solve(spy, zeros())
        assert solution.status[0] == SolveStatus.BROKEN_DOWN
        assert solution.n_evals[0] == 3
        assert torch.equal(solution.state[0], spy.states[1][0])

    def test_breakdown_is_said(self):
        with pytest.warns(RuntimeWarning, match='returned NaN or Inf'):
            Halfway().solve(lambda z: z * torch.nan, torch.ones(2, 3))

    @pytest.mark.parametrize('interval', [1, 2])
    def test_breakdown_of_a_sample_that_has_left_is_said(self, interval):
        spy = Spy(contraction_of_rows, breaks={0: [2]})
        solver = Halfway(max_evals=9, tol=0.0, check_interval=interval)
        with pytest.warns(RuntimeWarning, match='returned NaN or Inf'):
            solution = solver.solve(
                spy.restricted(slice(None)), zeros(), restrict=spy.restricted
            )
        assert solution.status.tolist().count(SolveStatus.BROKEN_DOWN) == 1

    def test_no_breakdown_nothing_said(self, recwarn):
        Halfway(max_evals=3).solve(contraction(), zeros())
        assert not [w for w in recwarn if w.category is RuntimeWarning]

    @pytest.mark.parametrize('stop_mode', ['abs', 'rel'])
    @pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
    def test_breakdown_is_seen_at_once(self, bad, stop_mode):
        spy = Spy(contraction(), breaks={5: [2]}, bad=bad)
        solution = Halfway(max_evals=4, tol=0.0, stop_mode=stop_mode).solve(
            spy, zeros()
        )
        assert solution.status[5] == SolveStatus.BROKEN_DOWN
        assert solution.n_evals.tolist() == [4] * 5 + [2] + [4] * 2

    def test_empty_batch(self):
        solution = Halfway().solve(lambda z: z, torch.zeros(0, 3))
        assert solution.state.shape == (0, 3)
        assert solution.status.shape == (0,)


class TestPauses:
    def test_nothing_is_evaluated_ahead(self):
        spy = Spy(contraction())
        pauses = Halfway(max_evals=9, tol=0.0).pauses(spy, zeros(), at=(2, 5, 40))
        assert spy.n_calls == 0
        for expected in (2, 5, 9):
            solution = next(pauses)
            assert spy.n_calls == expected
            assert solution.n_evals.tolist() == [expected] * BATCH_SIZE
            assert len(solution.trace) == expected
            running = solution.status == SolveStatus.RUNNING
            assert running.all() if expected < 9 else not running.any()
        assert next(pauses, None) is None

    def test_after_each(self):
        solver = Halfway(max_evals=3, tol=0.0)
        pauses = list(solver.pauses(contraction(), zeros()))
        assert [len(solution.trace) for solution in pauses] == [1, 2, 3]

    def test_end_before_a_pause(self):
        x = torch.ones(1, 2)
        pauses = Halfway().pauses(lambda z: x, torch.zeros(1, 2), at=[1, 20])
        assert [int(solution.n_evals) for solution in pauses] == [1, 11]

    def test_nothing_is_open_meanwhile(self):
        """Neither the mode of autograd nor autocast leaks to whoever gets a pause."""
        with torch.autocast('cpu', torch.bfloat16):
            for _ in Halfway(max_evals=3).pauses(contraction(), zeros()):
                assert torch.is_grad_enabled()
                assert autocast_dtype('cpu') == torch.bfloat16

    def test_breakdown_is_said(self):
        pauses = Halfway().pauses(lambda z: z * torch.nan, torch.ones(2, 3))
        with pytest.warns(RuntimeWarning, match='returned NaN or Inf'):
            (solution,) = pauses
        assert (solution.status == SolveStatus.BROKEN_DOWN).all()

    def test_wrong_state(self):
        with pytest.raises(ValueError, match=r'z0 must .* got .*\(3, 4, 5\)'):
            next(Halfway().pauses(lambda z: z, torch.zeros(3, 4, 5)))


class TestArguments:
    def test_keep_and_restrict_exclude_each_other(self):
        with pytest.raises(ValueError, match='keep and restrict'):
            Halfway().solve(
                torch.tanh, torch.zeros(1, 2), keep=(1,), restrict=lambda rows: None
            )

    def test_wrong_state(self):
        with pytest.raises(ValueError, match=r'z0 must .* got .*\(3, 4, 5\)'):
            Halfway().solve(lambda z: z, torch.zeros(3, 4, 5))
        with pytest.raises(ValueError, match=r'z0 must .* got torch.int64'):
            Halfway().solve(lambda z: z, torch.zeros(3, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match=r'f must .*\(3, 4\), got \(3, 5\)'):
            Halfway().solve(lambda z: torch.zeros(3, 5), torch.zeros(3, 4))

    def test_initial_state_is_not_changed(self):
        z0 = torch.ones(BATCH_SIZE, 3)
        Halfway(max_evals=4).solve(torch.cos, z0)
        assert (z0 == 1).all()


class TestRange:
    """Of the squares in a norm a dtype holds a part alone."""

    SCALES = [1e-44, 1e-30, 1e-23, 1e-12, 1.0, 1e18, 1e19, 1e30, 1e37]
    DOUBLE_SCALES = [1e-300, 1e-170, 1e-155, 1e-139, 1.0, 1e149, 1e155, 1e300]

    @pytest.mark.parametrize('scale', SCALES)
    @pytest.mark.parametrize('n_large', [1, 300])
    def test_norms(self, scale, n_large):
        x = torch.zeros(3, 300)
        x[0, :n_large] = scale
        x[1] = 1
        expected = x.double().norm(dim=1).float()
        torch.testing.assert_close(norms(x), expected, rtol=1e-6, atol=0)
        assert norms(x).dtype == torch.float32

    @pytest.mark.parametrize('other', [torch.nan, torch.inf, 0.0, 1e-30, 1e30])
    def test_norm_does_not_depend_on_batch_mates(self, other):
        # In float32 and in float64 the last bit is not the same for all of these.
        x = torch.rand(50, 21)
        expected = norms(x)
        x[25] = other
        assert torch.equal(norms(x)[:25], expected[:25])
        assert torch.equal(norms(x)[26:], expected[26:])

    @pytest.mark.parametrize('scale', DOUBLE_SCALES)
    @pytest.mark.parametrize('n_large', [1, 300])
    def test_norms_of_float64(self, scale, n_large):
        x = torch.zeros(3, 300, dtype=torch.float64)
        x[0, :n_large] = scale
        x[1] = 1
        expected = [scale * n_large**0.5, 300**0.5, 0.0]
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(norms(x), expected, rtol=1e-6, atol=0)
        # The others are what they are without it, to the bit.
        assert torch.equal(norms(x)[1:], torch.linalg.vector_norm(x[1:], dim=1))

    def test_norms_of_nothing(self):
        assert norms(torch.zeros(2, 0, dtype=torch.float64)).tolist() == [0, 0]

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_norm_that_is_out_of_range(self, dtype):
        x = torch.full((1, 100), torch.finfo(dtype).max, dtype=dtype)
        assert norms(x) == torch.finfo(dtype).max

    CASES = [
        *((scale, torch.float32) for scale in SCALES),
        *((scale, torch.float64) for scale in DOUBLE_SCALES),
    ]

    @pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize(('scale', 'dtype'), CASES)
    def test_bad_values_are_seen(self, bad, scale, dtype):
        x = torch.full((2, 5), scale, dtype=dtype)
        x[1, 3] = bad
        assert norms(x).isfinite().tolist() == [True, False]

    @pytest.mark.parametrize(('scale', 'dtype'), CASES)
    def test_large_and_small_residuals_are_no_breakdown(self, scale, dtype):
        """A scale of the state changes nothing but the scale of the residual."""
        x = torch.rand(4, 30, dtype=dtype)

        def solve(by):
            solver = Halfway(max_evals=8, tol=0.0, stop_mode='abs')
            return solver.solve(lambda z: 0.5 * z + by * x, torch.zeros_like(x))

        solution = solve(scale)
        assert (solution.status == SolveStatus.BUDGET_SPENT).all()
        if scale > 1e-35 or dtype == torch.float64:  # float32 is coarse below
            expected = solve(1.0).residual * scale
            torch.testing.assert_close(solution.residual, expected, rtol=1e-5, atol=0)


def test_autocast_reaches_nothing_of_a_method():
    """Not even a product of matrices, which would be in bfloat16."""
    seen = {}

    class Products(Halfway):
        def note(self, name, z):
            seen.setdefault(name, set()).add((z @ z.T).dtype)

        def init(self, z0):
            self.note('init', z0)
            return super().init(z0)

        def residual(self, state, z, fz):
            self.note('residual', z)
            return super().residual(state, z, fz)

        def step(self, state, z, fz, g):
            self.note('step', z)
            return super().step(state, z, fz, g)

        def inverse_jacobian(self, state):
            self.note('inverse_jacobian', torch.ones(2, 2))

    with torch.autocast('cpu', dtype=torch.bfloat16):
        Products(max_evals=3, tol=0).solve(torch.cos, torch.zeros(2, 3))
    names = ('init', 'residual', 'step', 'inverse_jacobian')
    assert seen == {name: {torch.float32} for name in names}


class TestRecording:
    """What would record a solve step by step gets an error instead of a wrong value."""

    def test_trace(self):
        def solve(z):
            return Halfway().solve(torch.cos, z).state

        with pytest.raises(RuntimeError, match='tools/deployment/export.py'):
            torch.jit.trace(solve, torch.zeros(1, 2), check_trace=False)

    @pytest.mark.parametrize('transform', [torch.func.vmap, torch.func.grad])
    def test_transforms(self, transform):
        def solve(x):
            z0 = torch.zeros(1, 2)
            return Halfway().solve(lambda z: torch.cos(z) + x, z0).state.sum()

        with pytest.raises(RuntimeError, match='do not work through a solve'):
            transform(solve)(torch.zeros(2))

    def test_forward_mode(self):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(torch.zeros(1, 2), torch.ones(1, 2))
            with pytest.raises(RuntimeError, match='do not work through a solve'):
                Halfway().solve(lambda z: torch.cos(z) + x, torch.zeros(1, 2))


class TestLooks:
    """The host asks the device how many samples run as rarely as it is told to."""

    @pytest.fixture
    def looks(self, monkeypatch):
        seen = []

        class Watched(Samples):
            def observe(self, z, residual, look):
                seen.append(look)
                super().observe(z, residual, look)

        monkeypatch.setattr(loop, 'Samples', Watched)
        return seen

    def test_each_evaluation_on_cpu(self, looks):
        Halfway(max_evals=4, tol=0.0).solve(torch.cos, torch.zeros(2, 3))
        assert looks == [True] * 4

    def test_at_the_interval(self, looks):
        solver = Halfway(max_evals=7, tol=0.0, check_interval=3)
        solver.solve(torch.cos, torch.zeros(2, 3))
        assert looks == [False, False, True] * 2 + [False]

    def test_method_is_told_who_runs(self):
        told = []

        class Listening(Halfway):
            def step(self, state, z, fz, g):
                told.append(None if state.active is None else state.active.tolist())
                return super().step(state, z, fz, g)

        def f(z):
            return torch.tensor([[0.0], [0.5]]) * z + 1

        # The first sample has converged after the second step of the plain iteration.
        z0 = torch.tensor([[1.0], [0.0]])
        Listening(max_evals=4, tol=0.0).solve(f, z0)
        assert told == [[False, True]] * 3
        told.clear()
        Listening(max_evals=5, tol=0.0, check_interval=2).solve(f, z0 + 1)
        assert told == [[True, True], None, [True, True], None]
        told.clear()
        rows = []

        def restrict(numbers):
            rows.append(numbers.tolist())
            return lambda z: 0.5 * z + 1

        Listening(max_evals=4, tol=0.0).solve(f, z0, restrict=restrict)
        assert told == [None] * 3
        assert rows == [[1]]


class TestMemory:
    def test_nothing_of_an_evaluation_lies_next_to_the_following(self):
        values, alive = [], []

        class Watched(Halfway):
            def residual(self, state, z, fz):
                g = super().residual(state, z, fz)
                values.append(weakref.ref(g))
                return g

        def f(z):
            alive.append(sum(value() is not None for value in values))
            fz = torch.cos(z)
            values.append(weakref.ref(fz))
            return fz

        Watched(max_evals=6, tol=0.0).solve(f, torch.zeros(2, 3))
        assert alive == [0] * 6

    def test_best_iterate_is_no_copy_where_all_improve(self):
        samples = Samples(torch.zeros(3, 4), tol=0.0)
        z = torch.ones(3, 4)
        samples.observe(z, torch.tensor([1.0, 2.0, 3.0]), look=True)
        assert samples.solution().state is z
        samples.observe(z + 1, torch.tensor([1.0, 2.0, 3.0]), look=True)
        assert samples.solution().state is z


class TestSamples:
    """Three samples: one converges at once, one breaks down next, one runs on.

    Later the converged one breaks down and the broken one converges: that is too late.
    """

    @pytest.fixture
    def samples(self):
        return Samples(torch.zeros(3, 2), tol=0.1)

    RESIDUALS = torch.tensor(
        [[0.1, 5.0, 6.0], [0.0, torch.nan, 4.0], [torch.nan, 0.05, 5.0]]
    )

    def observe(self, samples, number, look=True):
        z = torch.full((len(samples.rows), 2), float(number))
        samples.observe(z, self.RESIDUALS[number][samples.rows], look)

    def test_all_run_at_first(self, samples):
        assert samples.running.tolist() == [True] * 3
        assert samples.n_running == 3
        assert samples.active is None

    def test_counts_are_known_after_a_look(self, samples):
        self.observe(samples, 0)
        assert samples.n_running == 2
        assert samples.active.tolist() == [False, True, True]
        self.observe(samples, 1, look=False)
        assert samples.n_running is None
        assert samples.active.tolist() == [False, False, True]

    @pytest.mark.parametrize('look', [True, False])
    def test_solution(self, samples, look):
        for number in range(3):
            self.observe(samples, number, look)
        assert samples.solution().status[2] == SolveStatus.RUNNING
        samples.close()
        solution = samples.solution()
        assert solution.status.tolist() == [
            SolveStatus.CONVERGED,
            SolveStatus.BROKEN_DOWN,
            SolveStatus.BUDGET_SPENT,
        ]
        assert solution.n_evals.tolist() == [1, 2, 3]
        assert solution.state.tolist() == [[0, 0], [0, 0], [1, 1]]
        torch.testing.assert_close(solution.residual, torch.tensor([0.1, 5.0, 4.0]))
        inf = torch.inf
        expected = torch.tensor([[0.1, 5.0, 6.0], [0.1, inf, 4.0], [0.1, 5.0, 5.0]])
        torch.testing.assert_close(solution.trace, expected)

    def test_kept_iterate_of_a_step_that_overflowed(self, samples):
        self.observe(samples, 0)
        z = torch.tensor([[7.0, 7.0], [torch.inf, 7.0], [7.0, 7.0]])
        samples.keep(2, z, torch.tensor([1.0, torch.inf, 1.0]))
        assert samples.solution().iterates[2].tolist() == [[7, 7], [0, 0], [7, 7]]

    def test_freezing(self, samples):
        z = torch.full((3, 2), 7.0)
        assert samples.freeze(z) is z
        self.observe(samples, 0)
        z[0] = torch.nan
        assert samples.freeze(z).tolist() == [[0, 0], [7, 7], [7, 7]]

    def test_compaction(self, samples):
        whole = Samples(torch.zeros(3, 2), tol=0.1)
        for number in range(3):
            self.observe(whole, number)
        expected = whole.solution()

        assert samples.compact() is None
        self.observe(samples, 0)
        assert not samples.some_left
        assert samples.compact().tolist() == [1, 2]
        assert samples.some_left
        assert samples.rows.tolist() == [1, 2]
        assert samples.active is None
        self.observe(samples, 1)
        assert samples.compact().tolist() == [1]
        assert samples.rows.tolist() == [2]
        self.observe(samples, 2)
        found = samples.solution()
        for name in ('state', 'residual', 'status', 'n_evals', 'trace'):
            assert torch.equal(getattr(found, name), getattr(expected, name))

    def test_compaction_waits_for_a_look(self, samples):
        self.observe(samples, 0, look=False)
        assert samples.compact() is None


class TestMethodState:
    def test_selects_tensors_alone(self):
        state = MethodState()
        assert state.active is None
        state.active = torch.tensor([True, False, True])
        state.history = torch.arange(6).view(3, 2)
        state.n_steps = 4
        state.select(torch.tensor([2, 0]))
        assert state.active.tolist() == [True, True]
        assert state.history.tolist() == [[4, 5], [0, 1]]
        assert state.n_steps == 4


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_choice_lets_nothing_through(bad):
    mask = torch.tensor([True, False, True])
    new, old = torch.full((3, 4), bad), torch.full((3, 4), bad)
    new[mask], old[~mask] = 1.0, 2.0
    assert choose(mask, new, old).tolist() == [[1.0] * 4, [2.0] * 4, [1.0] * 4]


def test_choice_among_no_samples():
    mask = torch.zeros(0, dtype=torch.bool)
    assert choose(mask, torch.ones(0, 4), torch.ones(0, 4)).shape == (0, 4)
