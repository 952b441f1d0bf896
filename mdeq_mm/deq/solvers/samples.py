"""The books that the loop keeps on the samples of the batch."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from .low_rank import LowRankInverse
from .progress import Progress
from .solution import Solution, SolveStatus


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Returns the samples of ``new`` where the mask ``(B,)`` holds, else of ``old``."""
    if mask.device.type == 'cpu' and len(mask) > 0:
        # Whole samples are copied, several times faster there than by torch.where.
        return torch.stack([n if m else o for m, n, o in zip(mask.tolist(), new, old)])
    return torch.where(mask.unsqueeze(1), new, old)


class Samples:
    """The books on the samples of one solve: who runs, and what each has found.

    A sample runs until its residual is within the tolerance or ``f`` returns NaN or
    Inf for it. Then it has stopped: it is held at its best result, and stays in the
    batch until :meth:`compact` takes it out.

    Each look at how many samples run makes the host wait for the device, so that
    :meth:`observe` looks only when it is told to. In between, the masks are right and
    the counts are not known.

    In reduced precision a sample also stops, without an end of its solve, where this
    precision can bring no more. :meth:`refine` has it run again.

    Args:
        z (Tensor): Initial states, ``(B, N)``.
        tol (float): Residual at which a sample has converged.
        max_evals (int, optional): Evaluations after which a sample stops. Defaults to
            None, when the loop ends.
        resolution (float): How far the residuals may be off, see
            :class:`ReducedFunction`; 0 in full precision. Defaults to 0.0.

    Attributes:
        running (Tensor): Which samples in the batch run, bool, ``(b,)``.
        n_running (int, optional): How many these are; None where nobody has looked.
        n_broken (int): Samples that are known to have broken down.
        resolution (float): How far residuals may be off now.
        ended (bool): Whether the books are closed.
    """

    def __init__(
        self,
        z: Tensor,
        tol: float,
        max_evals: Optional[int] = None,
        resolution: float = 0.0,
    ) -> None:
        n_evals = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self._here = Progress(
            rows=torch.arange(len(z), device=z.device),
            best=z,
            residual=z.new_full((len(z),), torch.inf),
            status=torch.full_like(n_evals, SolveStatus.RUNNING),
            n_evals=n_evals,
            n_reduced=torch.zeros_like(n_evals),
            n_stale=torch.zeros_like(n_evals),
            settled=torch.zeros_like(n_evals, dtype=torch.bool),
        )
        self._gone: list[Progress] = []
        self._tol = tol
        self._max_evals = max_evals
        self.resolution = resolution
        self._had_reduced = resolution > 0
        self._n_before = 0
        self._trace: list[Tensor] = []
        self._iterates: dict[int, Tensor] = {}
        self._inverse_jacobian: Optional[LowRankInverse] = None
        self.ended = False
        self.running = self._here.status == SolveStatus.RUNNING
        self.n_running: Optional[int] = len(z)
        self.n_broken = self._n_broken_gone = 0

    @property
    def rows(self) -> Tensor:
        """Numbers of the samples in the batch, as the first batch counts, ``(b,)``."""
        return self._here.rows

    @property
    def best(self) -> Tensor:
        """The best states of the samples in the batch so far, ``(b, N)``."""
        return self._here.best

    @property
    def n_observed(self) -> int:
        """Evaluations that are in the books."""
        return len(self._trace)

    @property
    def active(self) -> Optional[Tensor]:
        """Which samples run, bool, ``(b,)``; None where all are known to."""
        return None if self.n_running == len(self.running) else self.running

    @property
    def some_left(self) -> bool:
        """Whether samples have left the batch."""
        return bool(self._gone)

    @property
    def some_wait(self) -> bool:
        """Whether samples wait for full precision."""
        return any(bool(part.waits.any()) for part in (self._here, *self._gone))

    def observe(
        self,
        z: Tensor,
        residual: Tensor,
        look: bool,
        unit: Union[float, Tensor] = 1.0,
    ) -> None:
        """Enters one evaluation into the books.

        Args:
            z (Tensor): What the solve would return of the iterates that were evaluated,
                ``(b, N)``. It is kept without a copy where all are the best so far.
            residual (Tensor): The residuals of these iterates, ``(b,)``.
            look (bool): Whether to find out how many samples run.
            unit (float or Tensor): The residual that stands for ``||f(z)||``, ``(b,)``.
                Defaults to 1.0, as for relative residuals.
        """
        here, running = self._here, self.running
        improved = running & (residual < here.residual)
        here.residual = torch.where(improved, residual, here.residual)
        here.n_evals = here.n_evals + running
        self._trace.append(self._whole(torch.where(running, residual, here.residual)))
        if self.resolution > 0:
            here.settle(running, improved, residual, self.resolution * unit, self._tol)
        else:
            here.status = here.status.masked_fill(
                running & (residual <= self._tol), SolveStatus.CONVERGED
            ).masked_fill(running & ~residual.isfinite(), SolveStatus.BROKEN_DOWN)
        if self._max_evals is not None:
            is_spent = (here.status == SolveStatus.RUNNING) & (
                here.n_evals >= self._max_evals
            )
            here.status = here.status.masked_fill(
                is_spent, SolveStatus.BUDGET_SPENT
            ).masked_fill(
                is_spent & running & ~residual.isfinite(), SolveStatus.BROKEN_DOWN
            )
        self.running = running = (here.status == SolveStatus.RUNNING) & ~here.settled

        self.n_running = n_improved = None
        if look:
            is_broken = here.status == SolveStatus.BROKEN_DOWN
            counts = torch.stack([running.sum(), improved.sum(), is_broken.sum()])
            self.n_running, n_improved, n_broken = counts.tolist()
            self.n_broken = self._n_broken_gone + n_broken
        # Whole states are copied only where some samples improved and others did not.
        if n_improved == len(z):
            here.best = z
        elif n_improved != 0:
            here.best = choose(improved, z, here.best)

    def refine(self, compact: bool) -> Tensor:
        """Begins full precision with the samples that wait for it.

        What has been measured of them in reduced precision is forgotten but for the
        best state.

        Args:
            compact (bool): Whether the batch becomes these samples alone. Otherwise it
                is the batch that the solve began with.

        Returns:
            Tensor: Which samples of the first batch have waited, bool, ``(B,)``.
        """
        here = Progress.merge([self._here, *self._gone])
        self._gone = []
        waited = here.waits
        here.settled = torch.zeros_like(waited)
        here.residual = here.residual.masked_fill(waited, torch.inf)
        if compact:
            self._gone.append(here.select((~waited).nonzero().squeeze(1)))
            here = here.select(waited.nonzero().squeeze(1))
        self._here, self.resolution = here, 0.0
        self._n_before = self.n_observed
        self.running = here.status == SolveStatus.RUNNING
        self.n_running = int(self.running.sum())
        self._n_broken_gone = self.n_broken if compact else 0
        return waited

    def keep(self, number: int, z: Tensor, residual: Tensor) -> None:
        """Keeps the iterates of an evaluation, or the best where ``f`` broke down."""
        finite = residual.isfinite().unsqueeze(1)
        self._iterates[number] = torch.where(finite, z, self._here.best)

    def compact(self) -> Optional[Tensor]:
        """Takes the samples that have stopped out of the batch.

        Returns:
            Tensor, optional: Numbers, in the batch as it was, of the samples that stay,
            ``(b,)``; None where none is known to have stopped.
        """
        if self.n_running is None or self.n_running == len(self.running):
            return None
        # By numbers: each look-up by a mask would wait for the device.
        self._n_broken_gone = self.n_broken
        order = self.running.argsort(descending=True, stable=True)
        staying, leaving = order[: self.n_running], order[self.n_running :]
        self._gone.append(self._here.select(leaving))
        self._here = self._here.select(staying)
        self.running = self.running[staying]
        return staying

    def freeze(self, z: Tensor) -> Tensor:
        """Returns the next iterates ``z``, those that have stopped at their best."""
        active = self.active
        return z if active is None else choose(active, z, self._here.best)

    def close(self, inverse_jacobian: Optional[LowRankInverse] = None) -> None:
        """Closes the books: a sample that still runs has spent its budget.

        Args:
            inverse_jacobian (LowRankInverse, optional): What the solution shall hold.
                Defaults to None.
        """
        here = self._here
        here.status = here.status.masked_fill(self.running, SolveStatus.BUDGET_SPENT)
        self._inverse_jacobian = inverse_jacobian
        self.ended = True

    def solution(self) -> Solution:
        """Returns what has been found, so far or, with closed books, in the end."""
        everyone = Progress.merge([self._here, *self._gone])
        return Solution(
            state=everyone.best,
            residual=everyone.residual,
            status=everyone.status,
            n_evals=everyone.n_evals,
            trace=self._whole_trace(everyone.n_reduced),
            inverse_jacobian=self._inverse_jacobian,
            iterates=self._iterates,
            n_reduced=everyone.n_reduced if self._had_reduced else None,
        )

    def _whole_trace(self, n_reduced: Tensor) -> Tensor:
        """Returns the trace, without rows in which a sample has waited for others."""
        trace = torch.stack(self._trace).nan_to_num(torch.inf, torch.inf)
        if not self._had_reduced:
            return trace
        number = torch.arange(len(trace), device=trace.device).unsqueeze(1)
        n_waited = (self._n_before - n_reduced).clamp_min(0)
        number = number + n_waited * (number >= n_reduced)
        return trace.gather(0, number.clamp_max(len(trace) - 1))[: self._max_evals]

    def _whole(self, row: Tensor) -> Tensor:
        """Completes a row of the trace by the samples that have left the batch."""
        if not self._gone:
            return row
        rows = torch.cat([self.rows, *(part.rows for part in self._gone)])
        values = torch.cat([row, *(part.residual for part in self._gone)])
        return values[rows.argsort()]
