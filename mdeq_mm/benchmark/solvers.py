"""What a solver adds to the evaluations it makes."""

from __future__ import annotations

import importlib.util
from functools import partial
from statistics import median
from typing import Any, Optional

from torch import Tensor, nn

from ..deq import AndersonSolver, BroydenSolver, PicardSolver
from ..utils.measure import interleave
from .problems import (
    TOLERANCES,
    Problem,
    SolveFunction,
    at_equilibrium,
    evaluations_to,
    residuals,
)


def has_torchdeq() -> bool:
    """Returns whether torchdeq is installed."""
    return importlib.util.find_spec('torchdeq') is not None


def own_solvers(
    n_evals: int, memory: Optional[int] = None, history_dtype: Optional[str] = None
) -> dict[str, SolveFunction]:
    """Returns the solvers of this package, which spend the whole budget."""
    kept = dict(history_dtype=history_dtype)
    updates = {} if memory is None else dict(memory=memory)
    solvers = (
        PicardSolver(n_evals, tol=0),
        AndersonSolver(n_evals, tol=0, **kept),
        BroydenSolver(n_evals, tol=0, **updates, **kept),
    )
    return {type(solver).__name__: solver.solve for solver in solvers}


def torchdeq_solvers(
    n_evals: int, memory: Optional[int] = None
) -> dict[str, SolveFunction]:
    """Returns torchdeq's solvers, which then evaluate as often as asked for."""
    from torchdeq.solver import get_solver

    # Broyden evaluates once before it counts; Anderson counts from its third.
    settings = dict(
        fixed_point_iter=dict(max_iter=n_evals),
        anderson=dict(max_iter=n_evals),
        broyden=dict(max_iter=n_evals - 1, LBFGS_thres=memory),
    )
    return {
        f'torchdeq {name}': partial(get_solver(name), tol=0, stop_mode='rel', **values)
        for name, values in settings.items()
    }


def measure_solvers(
    backbone: nn.Module,
    images: Tensor,
    n_evals: int,
    repeats: int,
    torchdeq: bool = False,
    memory: Optional[int] = None,
    history_dtype: Optional[str] = None,
) -> dict[str, dict[str, Any]]:
    """Measures all solvers on the equilibrium and on the adjoint system of a model.

    All solves of one problem are timed in turn, next to as many bare evaluations. The
    overhead is the time of a solve by that of its evaluations alone.

    Args:
        backbone (nn.Module): Backbone with an equilibrium layer, in evaluation mode.
        images (Tensor): Images, ``(B, C, H, W)``.
        n_evals (int): Evaluations of a solve, at least 3.
        repeats (int): Rounds.
        torchdeq (bool): Whether torchdeq's solvers are measured too.
            Defaults to False.
        memory (int, optional): Updates that Broyden's methods keep. Defaults to None,
            the default of each.
        history_dtype (str, optional): That of the solvers of this package.
            Defaults to None.

    Returns:
        dict: For each problem the seconds of a bare evaluation, ``bare``, and of each
        solver, in ``solvers``: ``evaluations`` counted in the function; median
        ``seconds``; ``overhead``; ``evaluations_to`` a relative residual, None where
        a sample did not get there.
    """
    solvers = own_solvers(n_evals, memory, history_dtype)
    if torchdeq:
        solvers.update(torchdeq_solvers(n_evals, memory))

    def measure_problem(problem: Problem) -> dict[str, Any]:
        traces = {name: residuals(solve, problem) for name, solve in solvers.items()}

        def bare() -> None:
            for _ in range(n_evals):
                problem.bare()

        cases = {
            name: partial(solve, problem.f, problem.start)
            for name, solve in solvers.items()
        }
        rounds = interleave(dict(bare=bare, **cases), repeats, images.device)
        seconds = {name: median(values) for name, values in rounds.items()}
        unit = seconds.pop('bare') / n_evals
        return dict(
            bare=unit,
            solvers={
                name: dict(
                    evaluations=len(traces[name]),
                    seconds=seconds[name],
                    overhead=seconds[name] / (len(traces[name]) * unit),
                    evaluations_to={
                        f'{tol:g}': _worst(traces[name], tol) for tol in TOLERANCES
                    },
                )
                for name in solvers
            },
            rounds=rounds,
        )

    def measure(problems: dict[str, Problem]) -> dict[str, Any]:
        return {name: measure_problem(problem) for name, problem in problems.items()}

    return at_equilibrium(backbone, images, measure)


def _worst(trace: Tensor, tol: float) -> Any:
    numbers = evaluations_to(trace, tol)
    return None if None in numbers else max(numbers)
