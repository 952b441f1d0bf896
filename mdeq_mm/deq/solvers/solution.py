"""What a fixed-point solver returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Optional

import torch
from torch import Tensor

from .history import add_combination_, batched_dots


class SolveStatus(IntEnum):
    """Why the solve of a sample ended."""

    CONVERGED = 0
    BUDGET_SPENT = 1
    BROKEN_DOWN = 2

    @property
    def message(self) -> str:
        """The status in words."""
        return _MESSAGES[self]


_MESSAGES = {
    SolveStatus.CONVERGED: 'converged: the residual is within the tolerance',
    SolveStatus.BUDGET_SPENT: 'budget spent: max_evals evaluations were not enough',
    SolveStatus.BROKEN_DOWN: 'broken down: the function returned NaN or Inf',
}


@dataclass
class LowRankInverse:
    """The matrix ``H = -I + S^T C S`` of each sample, without ever forming it.

    Broyden's method approximates with it the inverse Jacobian of ``f(z) - z``.

    Attributes:
        basis (Tensor): The rows of ``S``, ``(B, m, N)``, maybe in bfloat16.
        core (Tensor): ``C``, ``(B, m, m)``, float64.
    """

    basis: Tensor
    core: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Returns ``H x`` for ``x`` of shape ``(B, N)``."""
        return self._product(self.core, x)

    def apply_transpose(self, x: Tensor) -> Tensor:
        """Returns ``H^T x`` for ``x`` of shape ``(B, N)``."""
        return self._product(self.core.mT, x)

    def _product(self, core: Tensor, x: Tensor) -> Tensor:
        # Backward may run under autocast.
        with torch.autocast(x.device.type, enabled=False):
            (projected,) = batched_dots(self.basis, x)
            weights = core.to(x.dtype) @ projected.unsqueeze(2)
            return add_combination_(-x, weights.squeeze(2), self.basis)


@dataclass
class Solution:
    """What a solver found.

    Attributes:
        state (Tensor): For each sample the visited iterate with the smallest residual,
            ``(B, N)``.
        residual (Tensor): Its residual in the measure of the solver's ``stop_mode``,
            ``(B,)``; infinite where no evaluation was finite.
        status (Tensor): :class:`SolveStatus` codes, int64, ``(B,)``.
        n_evals (Tensor): Evaluations of ``f`` until the sample stopped, int64,
            ``(B,)``.
        trace (Tensor): Residual of every evaluation, ``(n, B)``. A sample that has
            stopped keeps the value of the iterate it is frozen at.
        inverse_jacobian (LowRankInverse, optional): Approximate inverse Jacobian of
            ``f(z) - z`` at the last iterate, where the method has one.
        iterates (dict[int, Tensor]): The iterates that were asked for, ``(B, N)``, by
            the number of their evaluation, counted from 1.
        adjoint (Solution, optional): Solution of the adjoint system, set by
            :class:`ImplicitGradient` once backward has run.
        linearization (tuple[Tensor, Tensor], optional): ``z`` and ``f(z)`` at the
            solution with a graph between them, both ``(B, N)``, where
            :class:`ImplicitGradient` has made them.
    """

    state: Tensor
    residual: Tensor
    status: Tensor
    n_evals: Tensor
    trace: Tensor
    inverse_jacobian: Optional[LowRankInverse] = None
    iterates: dict[int, Tensor] = field(default_factory=dict)
    adjoint: Optional[Solution] = None
    linearization: Optional[tuple[Tensor, Tensor]] = None

    @classmethod
    def initial(cls, z0: Tensor) -> Solution:
        """Wraps an initial state ``(B, N)`` that has not been evaluated yet."""
        n_evals = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        return cls(
            state=z0,
            residual=z0.new_full((len(z0),), torch.inf),
            status=torch.full_like(n_evals, SolveStatus.BUDGET_SPENT),
            n_evals=n_evals,
            trace=z0.new_empty(0, len(z0)),
        )

    @property
    def converged(self) -> Tensor:
        """Which samples met the tolerance, bool, ``(B,)``."""
        return self.status == SolveStatus.CONVERGED

    @property
    def messages(self) -> list[str]:
        """One readable message a sample."""
        return [SolveStatus(code).message for code in self.status.tolist()]
