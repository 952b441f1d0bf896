"""Which settings of the solvers need the fewest evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor, nn

from ..deq import AndersonSolver, BroydenSolver, FixedPointSolver, PicardSolver
from .problems import (
    TOLERANCES,
    Problem,
    equilibrium_problems,
    evaluations_to,
    residuals,
)


@dataclass
class Grid:
    """Settings to try.

    Attributes:
        memory (Sequence[int]): Memories of Broyden's method.
        window (Sequence[int]): Windows of Anderson acceleration.
        ridge (Sequence[float]): Ridges of Anderson acceleration.
        mixing (Sequence[float]): Mixings of Anderson acceleration.
        damping (Sequence[float]): Dampings of Picard iteration.
    """

    memory: Sequence[int] = (3, 5, 8, 10, 15, 30)
    window: Sequence[int] = (3, 4, 5, 6, 8, 10)
    ridge: Sequence[float] = (1e-8, 1e-6, 1e-4, 1e-2)
    mixing: Sequence[float] = (0.8, 0.9, 1.0)
    damping: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def solvers(self, n_evals: int) -> Iterator[tuple[str, FixedPointSolver]]:
        """Yields solvers with a tolerance of zero, with their names."""
        kinds: tuple[tuple[type[FixedPointSolver], tuple[str, ...]], ...] = (
            (BroydenSolver, ('memory',)),
            (AndersonSolver, ('window', 'ridge', 'mixing')),
            (PicardSolver, ('damping',)),
        )
        for kind, names in kinds:
            for values in product(*(getattr(self, name) for name in names)):
                settings = dict(zip(names, values))
                listed = ', '.join(f'{key}={settings[key]:g}' for key in names)
                solver = kind(max_evals=n_evals, tol=0.0, **settings)
                yield f'{kind.__name__}({listed})', solver


def sweep(
    backbone: nn.Module, images: Tensor, n_evals: int, grid: Grid
) -> dict[str, list[dict[str, Any]]]:
    """Counts the evaluations that solvers of all settings need.

    Args:
        backbone (nn.Module): Backbone with an equilibrium layer, in evaluation mode.
        images (Tensor): Images, ``(B, C, H, W)``.
        n_evals (int): The budget.
        grid (Grid): The settings.

    Returns:
        dict: For the problems ``forward`` and ``adjoint`` what :func:`sweep_problem`
        returns.
    """
    return {
        name: sweep_problem(problem, n_evals, grid)
        for name, problem in equilibrium_problems(backbone, images).items()
    }


def sweep_problem(problem: Problem, n_evals: int, grid: Grid) -> list[dict[str, Any]]:
    """Counts the evaluations that solvers of all settings need for one problem.

    Args:
        problem (Problem): The problem.
        n_evals (int): The budget.
        grid (Grid): The settings.

    Returns:
        list[dict]: The settings, best first: by the sum over the tolerances of the mean
        numbers of evaluations. Each is a dict of ``solver`` and ``evaluations_to``,
        which has for each tolerance how many samples have ``reached`` it; ``max``, the
        evaluations until all have, None if not all do; and ``mean``, in which a sample
        that does not get there counts with the budget.
    """
    found: list[dict[str, Any]] = []
    for name, solver in grid.solvers(n_evals):
        trace = residuals(solver.solve, problem)
        counts = {f'{tol:g}': _summary(trace, tol) for tol in TOLERANCES}
        found.append(dict(solver=name, evaluations_to=counts))
    return sorted(found, key=_total)


def _summary(trace: Tensor, tol: float) -> dict[str, Any]:
    numbers = evaluations_to(trace, tol)
    reached = [n for n in numbers if n is not None]
    spent = sum(reached) + (len(numbers) - len(reached)) * len(trace)
    return dict(
        reached=len(reached),
        max=max(reached) if len(reached) == len(numbers) else None,
        mean=spent / len(numbers),
    )


def _total(row: dict[str, Any]) -> float:
    return sum(counts['mean'] for counts in row['evaluations_to'].values())
