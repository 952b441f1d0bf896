"""Statistics of the solves of several iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from ...deq import Solution, SolveStatus


class StatisticsSum:
    """Sums over solves, kept on the device until they are wanted.

    Args:
        name (str): Which solves these are, ``'forward'`` or ``'backward'``.

    Attributes:
        n_steps (int): Iterations that were added since the sums were last taken.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_steps = 0
        self._sums: Optional[Tensor] = None
        self._maxima: Optional[Tensor] = None

    def add(self, solves: Sequence[tuple[Solution, str]]) -> None:
        """Adds the solves of one iteration, each with its stop mode."""
        solutions = [solution for solution, _ in solves]
        n_evals = torch.cat([s.n_evals for s in solutions]).float()
        residual = torch.cat([s.residual for s in solutions]).float()
        status = torch.cat([s.status for s in solutions])
        norm = torch.cat(
            [
                torch.linalg.vector_norm(s.state, dim=1)
                if mode == 'abs'
                else torch.ones_like(s.residual)
                for s, mode in solves
            ]
        )
        finite = residual.isfinite()
        residual = residual.where(finite, residual.new_zeros(()))
        sums = torch.stack(
            [
                torch.ones_like(residual).sum(),
                n_evals.sum(),
                finite.float().sum(),
                residual.sum(),
                (residual / (norm.float() + 1e-8)).sum(),
                (status == SolveStatus.CONVERGED).float().sum(),
                (status == SolveStatus.BROKEN_DOWN).any().float(),
            ]
        )
        maxima = torch.stack([n_evals.max(), residual.max()])
        if self.n_steps:
            sums = sums + self._sums
            maxima = torch.maximum(maxima, self._maxima)
        self._sums, self._maxima = sums, maxima
        self.n_steps += 1

    def take(self) -> dict[str, float]:
        """Returns the statistics, in one transfer from the device, and starts anew."""
        samples, evals, finite, residual, relative, converged, broken, *maxima = (
            torch.cat([self._sums, self._maxima]).tolist()
        )
        finite = max(finite, 1)
        values = dict(
            evals=evals / samples,
            evals_max=maxima[0],
            residual=residual / finite,
            residual_max=maxima[1],
            relative_residual=relative / finite,
            converged=converged / samples,
            breakdown=broken / self.n_steps,
        )
        self.n_steps = 0
        return values
