"""What a fixed-point solver returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Optional

from torch import Tensor

from .low_rank import LowRankInverse


class SolveStatus(IntEnum):
    """Where the solve of a sample stands, or why it ended."""

    CONVERGED = 0
    BUDGET_SPENT = 1
    BROKEN_DOWN = 2
    RUNNING = 3

    @property
    def message(self) -> str:
        """The status in words."""
        return _MESSAGES[self]


_MESSAGES = {
    SolveStatus.CONVERGED: 'converged: the residual is within the tolerance',
    SolveStatus.BUDGET_SPENT: 'budget spent: max_evals evaluations were not enough',
    SolveStatus.BROKEN_DOWN: 'broken down: the function returned NaN or Inf',
    SolveStatus.RUNNING: 'running: the solve has not ended',
}


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found. No attribute can be set.

    Attributes:
        state (Tensor): For each sample the visited iterate ``z`` with the smallest
            residual, or ``f(z)`` if the solver ``returns`` that, ``(B, N)``.
        residual (Tensor): The residual of ``z`` in the measure of the solver's
            ``stop_mode``, ``(B,)``, in the precision in which the sample was evaluated
            last; infinite where no evaluation in it was finite.
        status (Tensor): :class:`SolveStatus` codes, int64, ``(B,)``. No sample is
            ``RUNNING`` once the solve has ended.
        n_evals (Tensor): Evaluations of ``f`` until the sample stopped, int64,
            ``(B,)``.
        trace (Tensor): Residual of every evaluation of each sample, ``(n, B)``. A
            sample that has stopped keeps the value of the iterate it is frozen at.
        inverse_jacobian (LowRankInverse, optional): Approximate inverse Jacobian of
            ``f(z) - z`` at the last iterate, where the method has one.
            Defaults to None.
        iterates (dict[int, Tensor]): The iterates that were asked for, ``(B, N)``, by
            the number of their evaluation, counted from 1. Defaults to none.
        n_reduced (Tensor, optional): How many of ``n_evals`` were in reduced precision,
            int64, ``(B,)``. Defaults to None, for a solve without any.
    """

    state: Tensor
    residual: Tensor
    status: Tensor
    n_evals: Tensor
    trace: Tensor
    inverse_jacobian: Optional[LowRankInverse] = None
    iterates: dict[int, Tensor] = field(default_factory=dict)
    n_reduced: Optional[Tensor] = None

    @property
    def converged(self) -> Tensor:
        """Which samples met the tolerance, bool, ``(B,)``."""
        return self.status == SolveStatus.CONVERGED

    @property
    def messages(self) -> list[str]:
        """One readable message per sample."""
        return [SolveStatus(code).message for code in self.status.tolist()]
