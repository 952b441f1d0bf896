import pytest
import torch

from mdeq_mm.deq import (
    Cell,
    EquilibriumLayer,
    GuardedStart,
    PhantomGradient,
    PicardSolver,
    PreviousGuess,
)


class Affine(Cell):
    """The equilibrium is twice the injection. It counts the samples it is given."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, states, injections):
        self.sizes.append(len(states[0]))
        return (0.5 * states[0] + injections[0],)


class Broken(Affine):
    """NaN but at zero, where it is one step from its equilibrium."""

    def forward(self, states, injections):
        (result,) = super().forward(states, injections)
        return (result.where(states[0] == 0, torch.nan),)


SOLVER = PicardSolver(max_evals=40, tol=1e-4)
ONE = torch.ones(1, 3)


@pytest.fixture(params=['abs', 'rel'])
def solve(request):
    """Solves for an injection from a start; returns the pass and the calls."""
    solver = PicardSolver(max_evals=40, tol=1e-4, stop_mode=request.param)
    return lambda *args, **kwargs: run(*args, solver=solver, **kwargs)


def run(injection, start, cell=None, limit=0.5, solver=SOLVER):
    cell = cell or Affine()
    layer = EquilibriumLayer(cell, solver, PhantomGradient()).eval()
    guess = PreviousGuess().eval()
    mode = GuardedStart(solver, PhantomGradient(), limit)
    with torch.no_grad():
        if start is not None:
            with layer.using(initial_guess=guess):
                layer((start / 2,))
            cell.sizes.clear()
        with layer.using(mode=mode, initial_guess=guess):
            return layer((injection,)).forward_pass, list(cell.sizes)


def test_a_good_start_costs_nothing(solve):
    forward_pass, calls = solve(ONE, start=2.1 * ONE)
    solution = forward_pass.solution
    assert solution.n_evals.tolist() == [len(calls)] == [len(solution.trace)]
    assert solution.converged.all()
    torch.testing.assert_close(solution.state, 2 * ONE, rtol=1e-3, atol=0)
    assert forward_pass.guess.any()
    # It saves some.
    assert len(calls) < len(solve(ONE, start=None)[1])


def test_a_bad_start_is_found_by_one_evaluation(solve):
    forward_pass, calls = solve(ONE, start=-20 * ONE)
    cold, cold_calls = solve(ONE, start=None)
    assert len(calls) == len(cold_calls) + 1
    assert forward_pass.solution.n_evals.tolist() == [len(calls)]
    assert torch.equal(forward_pass.state, cold.state)
    assert not forward_pass.guess.any()


def test_the_function_of_the_pass_is_the_true_one(solve):
    forward_pass, _ = solve(ONE, start=2.1 * ONE)
    assert torch.equal(forward_pass.f(ONE), 1.5 * ONE)


def test_zero_is_not_looked_at(solve):
    forward_pass, calls = solve(ONE, start=None)
    assert forward_pass.solution.n_evals.tolist() == [len(calls)]


def test_limit():
    """From 4 the value is 3, so the relative residual is 1/3."""
    for limit, restarts in ((0.32, True), (0.34, False)):
        forward_pass, _ = run(ONE, start=4 * ONE, limit=limit)
        assert forward_pass.guess.any().item() is not restarts


def test_a_start_where_the_function_is_not_a_number():
    forward_pass, _ = run(ONE, 2 * ONE, cell=Broken())
    assert not forward_pass.guess.any()
    assert forward_pass.state.isfinite().all()


def test_samples_of_a_batch_decide_for_themselves():
    start = torch.cat([2.1 * ONE, -20 * ONE])
    forward_pass, _ = run(torch.ones(2, 3), start)
    alone = [run(ONE, row[None])[0] for row in start]
    for row, single in enumerate(alone):
        assert torch.equal(forward_pass.state[row], single.state[0])
        assert forward_pass.solution.n_evals[row] == single.solution.n_evals[0]
        assert torch.equal(forward_pass.guess[row], single.guess[0])


def test_autocast():
    layer = EquilibriumLayer(Affine(), SOLVER, PhantomGradient()).eval()
    guess = PreviousGuess().eval()
    mode = GuardedStart(SOLVER, PhantomGradient())
    autocast = torch.autocast('cpu', torch.bfloat16)
    using = layer.using(mode=mode, initial_guess=guess)
    with torch.no_grad(), autocast, using:
        layer((ONE,))
        forward_pass = layer((1.01 * ONE,)).forward_pass
    assert forward_pass.state.dtype == torch.float32
    assert forward_pass.solution.converged.all()


@pytest.mark.parametrize('limit', [0, -1, float('nan'), None])
def test_bad_limit(limit):
    with pytest.raises(ValueError, match='limit must be a positive number, got'):
        GuardedStart(SOLVER, PhantomGradient(), limit)
