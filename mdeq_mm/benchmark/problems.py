"""The two fixed-point problems of a model: its equilibrium and its adjoint system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from ..deq import EquilibriumLayer, Solve
from ..deq.solvers.base import FixedPointFunction

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
SolveFunction = Callable[[FixedPointFunction, Tensor], Any]


@dataclass
class Problem:
    """A problem ``z = f(z)``.

    Attributes:
        f (Callable): The function, ``(B, N)`` to ``(B, N)``.
        start (Tensor): Where solves start, ``(B, N)``.
        bare (Callable): What a call of ``f`` cannot do without, called without
            arguments: one evaluation of the cell, or one vector-Jacobian product.
    """

    f: FixedPointFunction
    start: Tensor
    bare: Callable[[], object]


def at_equilibrium(
    backbone: nn.Module,
    images: Tensor,
    measure: Callable[[dict[str, Problem]], Any],
) -> Any:
    """Calls a function with the problems of a backbone for some images.

    The adjoint system is the one at the state the backbone returns, for a gradient of
    random direction and unit norm in each sample.

    Args:
        backbone (nn.Module): Backbone in evaluation mode, with one equilibrium layer.
        images (Tensor): Images, ``(B, C, H, W)``.
        measure (Callable): Is given the problems ``'forward'`` and ``'adjoint'``, and
            called without gradients while normalised weights are those of the solve.

    Returns:
        Any: What ``measure`` returned.
    """
    results = []

    def hook(layer: EquilibriumLayer, solve: Solve) -> None:
        state = solve.state
        z, fz = solve.linearize()
        unit = nn.functional.normalize(torch.randn_like(state))

        def product(y: Tensor) -> Tensor:
            return torch.autograd.grad(fz, z, y, retain_graph=True)[0]

        problems = dict(
            forward=Problem(solve.f, torch.zeros_like(state), lambda: solve.f(state)),
            adjoint=Problem(lambda y: product(y) + unit, unit, lambda: product(unit)),
        )
        results.append(measure(problems))

    (layer,) = (m for m in backbone.modules() if isinstance(m, EquilibriumLayer))
    handle = layer.register_solve_hook(hook)
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        handle.remove()
    return results[0]


def residuals(solve: SolveFunction, problem: Problem) -> Tensor:
    """Returns the relative residual of each evaluation of a solve.

    They are computed from what passes through ``f``, whatever the solver itself
    records, so that solvers of different libraries can be compared.

    Args:
        solve (Callable): Called as ``solve(f, start)``.
        problem (Problem): What to solve.

    Returns:
        Tensor: ``||f(z) - z|| / ||f(z)||``, ``(evaluations, B)``.
    """
    rows = []

    def recorded(z: Tensor) -> Tensor:
        fz = problem.f(z)
        norm = torch.linalg.vector_norm(fz, dim=1)
        rows.append(torch.linalg.vector_norm(fz - z, dim=1) / norm)
        return fz

    solve(recorded, problem.start)
    return torch.stack(rows)


def evaluations_to(residuals: Tensor, tol: float) -> list[Optional[int]]:
    """Returns how many evaluations each sample needs until its residual is small.

    Args:
        residuals (Tensor): Residual of each evaluation, ``(evaluations, B)``.
        tol (float): What the residual has to reach.

    Returns:
        list[Optional[int]]: One number a sample, None where it never gets there.
    """
    small = residuals <= tol
    first = small.int().argmax(0) + 1
    return [
        int(n) if reached else None for n, reached in zip(first, small.any(0).tolist())
    ]
