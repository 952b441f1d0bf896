"""The books that the loop keeps on the samples of the batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Optional

import torch
from torch import Tensor

from .low_rank import LowRankInverse
from .solution import Solution, SolveStatus


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Returns the samples of ``new`` where the mask ``(B,)`` holds, else of ``old``."""
    if mask.device.type == 'cpu' and len(mask) > 0:
        # Whole samples are copied, several times faster there than by torch.where.
        return torch.stack([n if m else o for m, n, o in zip(mask.tolist(), new, old)])
    return torch.where(mask.unsqueeze(1), new, old)


@dataclass
class _Progress:
    """How far some samples have come.

    Attributes:
        rows (Tensor): Their numbers in the batch that the solve began with, int64.
        best (Tensor): What the solve returns of the visited iterate of smallest
            residual, ``(b, N)``.
        residual (Tensor): Its residual, ``(b,)``.
        status (Tensor): :class:`SolveStatus` codes, int64, ``(b,)``.
        n_evals (Tensor): Evaluations while the sample ran, int64, ``(b,)``.
    """

    rows: Tensor
    best: Tensor
    residual: Tensor
    status: Tensor
    n_evals: Tensor

    def select(self, rows: Tensor) -> _Progress:
        return _Progress(*(getattr(self, item.name)[rows] for item in fields(self)))

    @classmethod
    def merge(cls, parts: list[_Progress]) -> _Progress:
        """Joins parts and puts their samples into the order of the first batch."""
        if len(parts) == 1:
            return parts[0]
        columns = [
            torch.cat([getattr(part, item.name) for part in parts])
            for item in fields(cls)
        ]
        return cls(*columns).select(columns[0].argsort())


class Samples:
    """The books on the samples of one solve: who runs, and what each has found.

    A sample runs until its residual is within the tolerance or ``f`` returns NaN or
    Inf for it. Then it has stopped: it is held at its best result, and stays in the
    batch until :meth:`compact` takes it out.

    Each look at how many samples run makes the host wait for the device, so that
    :meth:`observe` looks only when it is told to. In between, the masks are right and
    the counts are not known.

    Args:
        z (Tensor): Initial states, ``(B, N)``.
        tol (float): Residual at which a sample has converged.

    Attributes:
        running (Tensor): Which samples in the batch run, bool, ``(b,)``.
        n_running (int, optional): How many these are; None where nobody has looked.
        n_broken (int): Samples that are known to have broken down.
        ended (bool): Whether the books are closed.
    """

    def __init__(self, z: Tensor, tol: float) -> None:
        n_evals = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self._here = _Progress(
            rows=torch.arange(len(z), device=z.device),
            best=z,
            residual=z.new_full((len(z),), torch.inf),
            status=torch.full_like(n_evals, SolveStatus.RUNNING),
            n_evals=n_evals,
        )
        self._gone: list[_Progress] = []
        self._tol = tol
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
    def active(self) -> Optional[Tensor]:
        """Which samples run, bool, ``(b,)``; None where all are known to."""
        return None if self.n_running == len(self.running) else self.running

    @property
    def some_left(self) -> bool:
        """Whether samples have left the batch."""
        return bool(self._gone)

    def observe(self, z: Tensor, residual: Tensor, look: bool) -> None:
        """Enters one evaluation into the books.

        Args:
            z (Tensor): What the solve would return of the iterates that were evaluated,
                ``(b, N)``. It is kept without a copy where all are the best so far.
            residual (Tensor): The residuals of these iterates, ``(b,)``.
            look (bool): Whether to find out how many samples run.
        """
        here, running = self._here, self.running
        improved = running & (residual < here.residual)
        here.residual = torch.where(improved, residual, here.residual)
        here.n_evals = here.n_evals + running
        self._trace.append(self._whole(torch.where(running, residual, here.residual)))
        here.status = here.status.masked_fill(
            running & (residual <= self._tol), SolveStatus.CONVERGED
        ).masked_fill(running & ~residual.isfinite(), SolveStatus.BROKEN_DOWN)
        self.running = running = here.status == SolveStatus.RUNNING

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
        everyone = _Progress.merge([self._here, *self._gone])
        return Solution(
            state=everyone.best,
            residual=everyone.residual,
            status=everyone.status,
            n_evals=everyone.n_evals,
            trace=torch.stack(self._trace).nan_to_num(torch.inf, torch.inf),
            inverse_jacobian=self._inverse_jacobian,
            iterates=self._iterates,
        )

    def _whole(self, row: Tensor) -> Tensor:
        """Completes a row of the trace by the samples that have left the batch."""
        if not self._gone:
            return row
        rows = torch.cat([self.rows, *(part.rows for part in self._gone)])
        values = torch.cat([row, *(part.residual for part in self._gone)])
        return values[rows.argsort()]
