"""What a solver adds to the evaluations it makes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..deq import AndersonSolver, BroydenSolver, PicardSolver
from .problems import (
    TOLERANCES,
    Problem,
    SolveFunction,
    equilibrium_problems,
    evaluations_to,
    residuals,
)
from .timing import interleave


def has_torchdeq() -> bool:
    """Returns whether torchdeq is installed."""
    return importlib.util.find_spec('torchdeq') is not None


def own_solvers(
    n_evals: int, memory: Optional[int] = None, history_dtype: Optional[str] = None
) -> dict[str, SolveFunction]:
    """Returns the solvers of this package, with a tolerance of zero.

    They spend the whole budget, unless they reach an exact fixed point before.

    Args:
        n_evals (int): The budget.
        memory (int, optional): Updates that Broyden's method keeps. Defaults to None,
            its own default.
        history_dtype (str, optional): Dtype of the histories. Defaults to None, that
            of the state.
    """
    broyden = BroydenSolver(n_evals, tol=0.0, history_dtype=history_dtype)
    if memory is not None:
        broyden = replace(broyden, memory=memory)
    solvers = (
        PicardSolver(n_evals, tol=0.0),
        AndersonSolver(n_evals, tol=0.0, history_dtype=history_dtype),
        broyden,
    )
    return {type(solver).__name__: solver.solve for solver in solvers}


def torchdeq_solvers(
    n_evals: int, memory: Optional[int] = None
) -> dict[str, SolveFunction]:
    """Returns torchdeq's solvers, set up to evaluate as often as asked for.

    Args:
        n_evals (int): Number of evaluations.
        memory (int, optional): Updates that Broyden's method keeps. Defaults to None,
            all.
    """
    from torchdeq.solver import get_solver

    # Its Broyden evaluates once before it counts; its Anderson counts from the third.
    settings: dict[str, dict[str, Any]] = dict(
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

    Args:
        backbone (nn.Module): Backbone with an equilibrium layer, in evaluation mode.
        images (Tensor): Images, ``(B, C, H, W)``.
        n_evals (int): Number of evaluations of a solve, at least 3.
        repeats (int): Number of rounds.
        torchdeq (bool): Whether torchdeq's solvers are measured too.
            Defaults to False.
        memory (int, optional): Updates that Broyden's methods keep. Defaults to None,
            the default of each.
        history_dtype (str, optional): That of the solvers of this package.
            Defaults to None.

    Returns:
        dict: For the problems ``forward`` and ``adjoint`` what
        :func:`measure_problem` returns.
    """
    solvers = own_solvers(n_evals, memory, history_dtype)
    if torchdeq:
        solvers.update(torchdeq_solvers(n_evals, memory))
    return {
        name: measure_problem(problem, solvers, n_evals, repeats)
        for name, problem in equilibrium_problems(backbone, images).items()
    }


@torch.no_grad()
def measure_problem(
    problem: Problem, solvers: dict[str, SolveFunction], n_evals: int, repeats: int
) -> dict[str, Any]:
    """Measures solvers on a problem.

    All solves are timed in turn, next to as many bare evaluations. The overhead is the
    time of a solve divided by that of its evaluations alone.

    Args:
        problem (Problem): The problem.
        solvers (dict[str, Callable]): The solvers by name, called as
            ``solve(f, start)``.
        n_evals (int): Number of bare evaluations to time.
        repeats (int): Number of rounds.

    Returns:
        dict: The seconds of a bare evaluation, ``bare``; the seconds of all ``rounds``;
        and for each of the ``solvers``: the number of ``evaluations``, counted in the
        function; the median ``seconds``; the ``overhead``; the number of
        ``evaluations_to`` a relative residual, None where a sample does not get there.
    """
    traces = {name: residuals(solve, problem) for name, solve in solvers.items()}

    def bare() -> None:
        for _ in range(n_evals):
            problem.bare()

    cases = {
        name: partial(solve, problem.f, problem.start)
        for name, solve in solvers.items()
    }
    rounds = interleave(dict(bare=bare, **cases), repeats, problem.start.device)
    seconds = {name: median(values) for name, values in rounds.items()}
    unit = seconds.pop('bare') / n_evals
    return dict(
        bare=unit,
        solvers={
            name: dict(
                evaluations=len(trace),
                seconds=seconds[name],
                overhead=seconds[name] / (len(trace) * unit),
                evaluations_to={f'{tol:g}': _most(trace, tol) for tol in TOLERANCES},
            )
            for name, trace in traces.items()
        },
        rounds=rounds,
    )


def _most(trace: Tensor, tol: float) -> Optional[int]:
    numbers = evaluations_to(trace, tol)
    reached = [number for number in numbers if number is not None]
    return max(reached) if len(reached) == len(numbers) else None
