"""The two fixed-point problems of a model: its equilibrium and its adjoint system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..apis import single_layer, solving_mode
from ..deq import FixedPointFunction, ForwardPass

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


@torch.no_grad()
def equilibrium_problems(backbone: nn.Module, images: Tensor) -> dict[str, Problem]:
    """Returns the problems of a backbone for some images.

    The adjoint system is that at the state the backbone returns, for a gradient of
    random direction and unit norm per sample. Dropout masks and normalised weights of
    both problems are those of one forward pass.

    Args:
        backbone (nn.Module): Backbone in evaluation mode, with one equilibrium layer.
            It is solved for, even if its mode is unrolled.
        images (Tensor): Images, ``(B, C, H, W)``.

    Returns:
        dict[str, Problem]: The problems ``'forward'`` and ``'adjoint'``.
    """
    layer = single_layer(backbone)
    passes: list[ForwardPass] = []
    observing = layer.register_pass_hook(lambda layer, record: passes.append(record))
    with observing, layer.using(mode=solving_mode(layer)):
        backbone(images)
    forward_pass = passes[0]
    f, state = forward_pass.f, forward_pass.state
    z, fz = forward_pass.linearize()
    unit = nn.functional.normalize(torch.randn_like(state))

    def product(y: Tensor) -> Tensor:
        return torch.autograd.grad(fz, z, y, retain_graph=True)[0]

    return dict(
        forward=Problem(f, torch.zeros_like(state), lambda: f(state)),
        adjoint=Problem(lambda y: product(y) + unit, unit, lambda: product(unit)),
    )


def residuals(solve: SolveFunction, problem: Problem) -> Tensor:
    """Returns the relative residual at each evaluation of a solve.

    It is computed from what passes through ``f``, whatever the solver itself records.
    So solvers of different libraries can be compared.

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

    with torch.no_grad():
        solve(recorded, problem.start)
    return torch.stack(rows)


def evaluations_to(residuals: Tensor, tol: float) -> list[Optional[int]]:
    """Returns how many evaluations each sample needs until its residual is small.

    Args:
        residuals (Tensor): Residual at each evaluation, ``(evaluations, B)``.
        tol (float): What the residual has to reach.

    Returns:
        list[Optional[int]]: One number per sample, None where a sample never gets
        there.
    """
    small = residuals <= tol
    first = small.int().argmax(0) + 1
    return [
        int(n) if reached else None for n, reached in zip(first, small.any(0).tolist())
    ]
