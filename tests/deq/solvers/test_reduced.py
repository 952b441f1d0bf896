"""Solves that begin in reduced precision, with every solver of the table."""

import weakref

import pytest
import torch

from mdeq_mm.deq import BroydenSolver, PicardSolver, ReducedFunction, SolveStatus
from mdeq_mm.deq.solvers.progress import PATIENCE
from mdeq_mm.deq.solvers.samples import Samples

from .problems import BATCH_SIZE, Spy, contraction, zeros
from .table import SOLVERS

RESOLUTION = torch.finfo(torch.bfloat16).eps
LOOSE, TIGHT = 5e-2, 1e-6


def rounded(f):
    """``f`` as autocast would have it: what it is given and returns is rounded."""
    return lambda z, *rows: f(z.bfloat16().to(z.dtype), *rows).bfloat16()


class Functions:
    """A contraction in both precisions, and spies on the calls of both.

    Args:
        dtype (torch.dtype): Full precision.
        **settings: Those of the spy on reduced precision.
    """

    def __init__(self, dtype=torch.float64, **settings):
        self.full = Spy(contraction(dtype))
        self.low = Spy(rounded(contraction(dtype)), **settings)
        self.z0 = zeros(dtype)

    def solve(self, solver, compact=False, **settings):
        return solver.solve(
            self.full.restricted(slice(None)),
            self.z0,
            restrict=self.full.restricted if compact else None,
            reduced=ReducedFunction(
                self.low.restricted(slice(None)), RESOLUTION, self.low.restricted
            ),
            **settings,
        )


@pytest.fixture(params=SOLVERS)
def make(request):
    return request.param.make


@pytest.mark.parametrize('compact', [False, True])
class TestEverySolver:
    def test_loose_tolerance_takes_reduced_precision_alone(self, make, compact):
        functions = Functions()
        solution = functions.solve(make(max_evals=200, tol=LOOSE), compact)
        assert solution.converged.all()
        assert torch.equal(solution.n_reduced, solution.n_evals)
        assert functions.full.n_calls == 0
        assert functions.low.n_calls == len(solution.trace) == solution.n_evals.max()
        fz = functions.full(solution.state)
        residual = (fz - solution.state).norm(dim=1) / fz.norm(dim=1)
        # In full precision too, though only reduced precision was seen.
        assert (residual <= LOOSE).all()

    def test_tight_tolerance_is_reached_in_full_precision(self, make, compact):
        functions = Functions()
        solver = make(max_evals=2000, tol=TIGHT)
        solution = functions.solve(solver, compact)
        assert solution.converged.all()
        fz = functions.full.f(solution.state)
        residual = (fz - solution.state).norm(dim=1) / (fz.norm(dim=1) + 1e-8)
        torch.testing.assert_close(solution.residual, residual)
        expected = solver.solve(contraction(), zeros()).state
        assert ((solution.state - expected).norm(dim=1) <= 1e-4).all()
        # Each did a part of the work, and the counts say which.
        assert (solution.n_reduced > 0).all()
        assert (solution.n_evals > solution.n_reduced).all()
        assert functions.low.n_calls == solution.n_reduced.max()
        n_full = solution.n_evals - solution.n_reduced
        assert functions.full.n_calls == n_full.max()
        if compact:
            assert functions.low.n_evals == solution.n_reduced.sum()
            assert functions.full.n_evals == n_full.sum()

    @pytest.mark.parametrize('max_evals', [1, 3, 7, 12])
    def test_budget_is_that_of_each_sample(self, make, compact, max_evals):
        functions = Functions()
        solution = functions.solve(make(max_evals=max_evals, tol=0.0), compact)
        assert (solution.n_evals == max_evals).all()
        assert (solution.status == SolveStatus.BUDGET_SPENT).all()
        assert functions.low.n_calls <= max_evals
        assert functions.full.n_calls < max_evals

    def test_samples_are_on_their_own(self, make, compact):
        solver = make(max_evals=300, tol=1e-5)
        together = Functions().solve(solver, compact)
        assert together.n_reduced.unique().numel() > 1
        low = rounded(contraction())
        for sample in range(BATCH_SIZE):
            rows = slice(sample, sample + 1)
            alone = solver.solve(
                lambda z, rows=rows: contraction()(z, rows),
                zeros()[rows],
                reduced=ReducedFunction(lambda z, rows=rows: low(z, rows), RESOLUTION),
            )
            assert alone.n_evals[0] == together.n_evals[sample]
            assert alone.n_reduced[0] == together.n_reduced[sample]
            # No row says how long it has waited for its batch mates.
            trace = together.trace[: len(alone.trace), sample]
            torch.testing.assert_close(trace, alone.trace[:, 0], rtol=1e-5, atol=1e-9)
            assert (together.trace[len(alone.trace) :, sample] == trace[-1]).all()
            torch.testing.assert_close(
                alone.state[0], together.state[sample], rtol=1e-6, atol=1e-9
            )

    @pytest.mark.parametrize('first', [1, 3])
    def test_breakdown_in_reduced_precision_is_none(self, make, compact, first):
        """Full precision has the last word."""
        functions = Functions(breaks={3: range(first, 1000)}, bad=torch.inf)
        solution = functions.solve(make(max_evals=2000, tol=1e-5), compact)
        assert solution.converged.all()
        assert solution.n_reduced[3] == first

    def test_breakdown_in_full_precision(self, make, compact):
        functions = Functions()
        functions.full.breaks = {3: range(1, 1000)}
        with pytest.warns(RuntimeWarning, match='NaN or Inf'):
            solution = functions.solve(make(max_evals=2000, tol=1e-5), compact)
        others = torch.arange(BATCH_SIZE) != 3
        assert solution.status[3] == SolveStatus.BROKEN_DOWN
        assert solution.converged[others].all()
        assert solution.n_evals[3] == solution.n_reduced[3] + 1
        assert solution.state.isfinite().all()

    def test_absolute_residuals(self, make, compact):
        functions = Functions()
        solver = make(max_evals=2000, tol=1e-5, stop_mode='abs')
        solution = functions.solve(solver, compact)
        fz = functions.full.f(solution.state)
        assert ((fz - solution.state).norm(dim=1) <= 1e-5).all()
        assert (solution.n_reduced > 0).all()


class TestSwitch:
    def test_begins_with_an_empty_memory_at_the_best_state(self):
        """No secant pair mixes precisions: the first step is again one of Picard's."""
        functions = Functions()
        solver = BroydenSolver(max_evals=60, tol=TIGHT)
        solution = functions.solve(solver)
        number = int(solution.n_reduced.max())
        before, first, second = (
            functions.low.states,
            functions.full.states[0],
            functions.full.states[1],
        )
        assert number == len(before)
        for sample, own in enumerate(solution.n_reduced.tolist()):
            index = solution.trace[:own, sample].argmin()
            assert torch.equal(first[sample], before[index][sample])
        torch.testing.assert_close(second, functions.full.f(first))

    def test_needs_no_more_than_a_few_evaluations_more(self):
        """In both precisions together, next to full precision alone."""
        for solver in (BroydenSolver(60, 1e-5), PicardSolver(200, 1e-5)):
            mixed = Functions().solve(solver).n_evals
            plain = solver.solve(contraction(), zeros()).n_evals
            assert (mixed <= plain + 8).all()

    def test_residual_that_stops_falling(self):
        """Rounding errors larger than assumed: the sample does not stay with them."""

        def noisy(z):
            noisy.sign = -noisy.sign
            return contraction()(z) + noisy.sign

        noisy.sign = 1.0
        f, solver = contraction(), PicardSolver(max_evals=400, tol=1e-6, damping=1)
        solution = solver.solve(f, zeros(), reduced=ReducedFunction(noisy, RESOLUTION))
        assert solution.converged.all()
        for sample, own in enumerate(solution.n_reduced.tolist()):
            assert own == solution.trace[:own, sample].argmin() + 1 + PATIENCE

    @pytest.mark.parametrize('interval', [1, 2, 3])
    @pytest.mark.parametrize('compact', [False, True])
    def test_rare_looks_change_nothing(self, interval, compact):
        often, rarely = (
            Functions().solve(BroydenSolver(50, 1e-5, check_interval=n), compact)
            for n in (1, interval)
        )
        assert torch.equal(rarely.status, often.status)
        assert torch.equal(rarely.n_evals, often.n_evals)
        assert torch.equal(rarely.n_reduced, often.n_reduced)
        torch.testing.assert_close(rarely.state, often.state, rtol=0, atol=1e-9)

    def test_kept_iterates(self):
        functions = Functions()
        solution = functions.solve(BroydenSolver(40, 1e-5), keep=range(100))
        states = [*functions.low.states, *functions.full.states]
        assert set(solution.iterates) == set(range(1, len(states) + 1))
        for number, state in enumerate(states, start=1):
            assert torch.equal(solution.iterates[number], state)

    @pytest.mark.parametrize('compact', [False, True])
    def test_breakdown_with_the_last_of_the_budget(self, compact):
        """No evaluation is left for full precision. Another sample has one left."""
        functions = Functions(breaks={7: [4]})
        with pytest.warns(RuntimeWarning, match='NaN or Inf'):
            solution = functions.solve(PicardSolver(4, 0.0, damping=1), compact)
        expected = [*[SolveStatus.BUDGET_SPENT] * 7, SolveStatus.BROKEN_DOWN]
        assert solution.status.tolist() == expected
        assert (solution.n_evals == 4).all()
        assert solution.n_reduced[[0, 7]].tolist() == [3, 4]

    def test_history_of_reduced_precision_is_let_go_of(self):
        """Where all go on, that of full precision does not lie next to it."""
        functions, starts, kept = Functions(), [], []

        class Noting(BroydenSolver):
            def init(self, z0):
                starts.append(z0)
                assert all(inverse() is None for inverse in kept)
                return super().init(z0)

            def inverse_jacobian(self, state):
                inverse = super().inverse_jacobian(state)
                kept.append(weakref.ref(inverse))
                return inverse

        solution = functions.solve(Noting(max_evals=60, tol=TIGHT))
        assert len(starts) == len(kept) == 2
        assert solution.inverse_jacobian is kept[-1]()

    def test_inverse_is_that_of_the_last_precision_of_each_sample(self):
        tol = 1.5 * RESOLUTION
        solver = BroydenSolver(max_evals=40, tol=tol)
        functions = Functions()
        solution = functions.solve(solver)
        has_both = solution.n_evals > solution.n_reduced
        assert has_both.any()
        assert not has_both.all()
        x = torch.randn_like(functions.z0)
        found = solution.inverse_jacobian.apply(x)
        low = Functions()
        # Those that have stopped in reduced precision, in a solve of it alone.
        alone = solver.solve(
            low.low, low.z0, reduced=ReducedFunction(low.low, RESOLUTION)
        )
        expected = alone.inverse_jacobian.apply(x)
        assert torch.equal(found[~has_both], expected[~has_both])
        # A single evaluation in full precision leaves nothing but -I.
        once = solution.n_evals == solution.n_reduced + 1
        torch.testing.assert_close(found[has_both & once], -x[has_both & once])

    def test_pauses(self):
        functions, solver = Functions(), BroydenSolver(40, 1e-5)
        expected = functions.solve(solver)
        other = Functions()
        reduced = ReducedFunction(other.low, RESOLUTION)
        *paused, found = solver.pauses(other.full, other.z0, reduced=reduced)
        assert len(paused) + 1 == len(expected.trace)
        for name in ('state', 'residual', 'status', 'n_evals', 'n_reduced', 'trace'):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name

    def test_no_samples(self):
        solution = BroydenSolver().solve(
            lambda z: z, torch.zeros(0, 3), reduced=ReducedFunction(lambda z: z, 0.1)
        )
        assert solution.n_reduced.shape == solution.n_evals.shape == (0,)

    def test_without_it_nothing_is_counted(self):
        assert PicardSolver().solve(torch.cos, torch.zeros(2, 3)).n_reduced is None


class TestSamples:
    """Residuals that are known up to 0.1, and a tolerance of 0.3."""

    def test_who_waits(self):
        samples = Samples(torch.zeros(5, 2), 0.3, max_evals=9, resolution=0.1)
        residual = torch.tensor([0.199, 0.201, 5.0, torch.nan, 0.0])
        samples.observe(torch.ones(5, 2), residual, look=True)
        status = samples.solution().status
        assert (status == SolveStatus.CONVERGED).tolist() == [True, *[False] * 3, True]
        assert samples.running.tolist() == [False, True, True, False, False]
        assert samples.some_wait
        assert samples.n_broken == 0
        waited = samples.refine(compact=False)
        assert waited.tolist() == [False, False, False, True, False]

    def test_residuals_of_reduced_precision_are_forgotten(self):
        """The best state stays, and full precision measures anew, even if worse."""
        samples = Samples(torch.zeros(1, 2), 0.01, max_evals=9, resolution=0.1)
        samples.observe(torch.ones(1, 2), torch.tensor([0.15]), look=True)
        samples.refine(compact=False)
        assert samples.best.tolist() == [[1, 1]]
        samples.observe(2 * torch.ones(1, 2), torch.tensor([0.18]), look=True)
        solution = samples.solution()
        assert solution.state.tolist() == [[2, 2]]
        torch.testing.assert_close(solution.residual, torch.tensor([0.18]))
        assert solution.n_evals.tolist() == [2]
        assert solution.n_reduced.tolist() == [1]

    def test_within_twice_the_resolution_but_not_the_tolerance(self):
        samples = Samples(torch.zeros(2, 2), 0.01, max_evals=9, resolution=0.1)
        samples.observe(torch.ones(2, 2), torch.tensor([0.2, 0.21]), look=True)
        assert samples.running.tolist() == [False, True]

    def test_floor_of_each_sample(self):
        samples = Samples(torch.zeros(2, 2), 0.01, max_evals=9, resolution=0.1)
        unit = torch.tensor([1.0, 10.0])
        samples.observe(torch.ones(2, 2), torch.tensor([1.0, 1.0]), True, unit)
        assert samples.running.tolist() == [True, False]
