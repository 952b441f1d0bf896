"""How far the samples of a solve have come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Union

import torch
from torch import Tensor

from .solution import SolveStatus

# Evaluations in reduced precision without a better residual after which a sample waits
# for full precision. Residuals of accelerated methods do rise for one or two.
PATIENCE = 5


@dataclass
class Progress:
    """How far some samples have come.

    Attributes:
        rows (Tensor): Their numbers in the batch that the solve began with, int64.
        best (Tensor): What the solve returns of the visited iterate of smallest
            residual, ``(b, N)``.
        residual (Tensor): Its residual, ``(b,)``.
        status (Tensor): :class:`SolveStatus` codes, int64, ``(b,)``.
        n_evals (Tensor): Evaluations while the sample ran, int64, ``(b,)``.
        n_reduced (Tensor): How many of these were in reduced precision, int64,
            ``(b,)``.
        n_stale (Tensor): Evaluations since the last one that was the best, int64,
            ``(b,)``.
        settled (Tensor): Of which samples reduced precision has given what it can,
            bool, ``(b,)``.
    """

    rows: Tensor
    best: Tensor
    residual: Tensor
    status: Tensor
    n_evals: Tensor
    n_reduced: Tensor
    n_stale: Tensor
    settled: Tensor

    @property
    def waits(self) -> Tensor:
        """Which samples wait for full precision, bool, ``(b,)``."""
        return self.settled & (self.status == SolveStatus.RUNNING)

    def select(self, rows: Tensor) -> Progress:
        """Returns the progress of the samples of the given numbers."""
        return Progress(*(getattr(self, item.name)[rows] for item in fields(self)))

    def settle(
        self,
        running: Tensor,
        improved: Tensor,
        residual: Tensor,
        floor: Union[float, Tensor],
        tol: float,
    ) -> None:
        """Stops the samples of which reduced precision has given what it can.

        A residual in reduced precision is off by up to ``floor``. So a sample has
        converged where even the largest residual that it may have in full precision is
        within the tolerance. It waits for full precision where its residual is no more
        than twice ``floor``, hence hardly more than rounding errors, and the tolerance
        is below that; where its residual has not fallen for a few evaluations; and
        where ``f`` returned NaN or Inf.

        Args:
            running (Tensor): Which samples ran, bool, ``(b,)``.
            improved (Tensor): Which have a better residual than before, bool, ``(b,)``.
            residual (Tensor): The residuals of this evaluation, ``(b,)``.
            floor (float or Tensor): See above, maybe ``(b,)``.
            tol (float): The tolerance.
        """
        self.n_reduced = self.n_reduced + running
        self.n_stale = torch.where(improved, 0, self.n_stale + running)
        has_converged = running & (residual + floor <= tol)
        self.status = self.status.masked_fill(has_converged, SolveStatus.CONVERGED)
        is_noise = residual.clamp_min(tol) <= 2 * floor
        is_done = is_noise | (self.n_stale >= PATIENCE) | ~residual.isfinite()
        is_done = is_done & ~has_converged
        self.settled = self.settled | (running & is_done)

    @classmethod
    def merge(cls, parts: Sequence[Progress]) -> Progress:
        """Joins parts and puts their samples into the order of the first batch."""
        if len(parts) == 1:
            return parts[0]
        columns = [
            torch.cat([getattr(part, item.name) for part in parts])
            for item in fields(cls)
        ]
        return cls(*columns).select(columns[0].argsort())
