"""What every fixed-point solver shares: the loop and the stopping rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Callable, Optional

import torch
from torch import Tensor

from .history import History, choose
from .solution import LowRankInverse, Solution, SolveStatus

FixedPointFunction = Callable[[Tensor], Tensor]


@dataclass
class _Samples:
    """Where each sample of the batch stands."""

    rows: Tensor
    best: Tensor
    residual: Tensor
    status: Tensor
    n_evals: Tensor

    def select(self, rows: Tensor) -> _Samples:
        return _Samples(*(getattr(self, item.name)[rows] for item in fields(self)))

    @classmethod
    def merge(cls, parts: list[_Samples]) -> _Samples:
        if len(parts) == 1:
            return parts[0]
        columns = [
            torch.cat([getattr(part, item.name) for part in parts])
            for item in fields(cls)
        ]
        return cls(*columns).select(columns[0].argsort())


class FixedPointSolver(ABC):
    """Finds ``z = f(z)`` for each sample of a batch on its own.

    The rules of every solver:

    - ``f`` is called at most ``max_evals`` times and never again on the result.
    - Stopping is per sample. A sample that has met the tolerance, or for which ``f``
      returned NaN or Inf, is frozen at its best iterate: its result does not depend on
      its batch mates. The solve ends when every sample has stopped.
    - No graph is recorded. The arithmetic is in float32, or in float64 if the initial
      state is, whatever autocast makes of ``f``.

    Args:
        max_evals (int): Budget of evaluations of ``f``, at least 1. Defaults to 30.
        tol (float): A sample has converged when its residual is at most this. With 0
            the whole budget is spent. Defaults to 1e-3.
        stop_mode (str): Measure of the residual: ``'abs'`` is ``||f(z) - z||``,
            ``'rel'`` is ``||f(z) - z|| / (||f(z)|| + 1e-8)``. Defaults to ``'rel'``.

    Attributes:
        check_interval (int, optional): Evaluations from one look at whether all samples
            have stopped to the next. Defaults to None: 1 on CPU, and 3 where a look
            waits for the device.

    Raises:
        ValueError: If an argument is out of its range.
    """

    STOP_MODES = ('abs', 'rel')
    check_interval: Optional[int] = None

    def __init__(
        self, max_evals: int = 30, tol: float = 1e-3, stop_mode: str = 'rel'
    ) -> None:
        if not isinstance(max_evals, int) or max_evals < 1:
            raise ValueError(
                f'max_evals must be an integer of at least 1, got {max_evals!r}'
            )
        if not tol >= 0:
            raise ValueError(f'tol must not be negative, got {tol!r}')
        if stop_mode not in self.STOP_MODES:
            raise ValueError(
                f'stop_mode must be one of {self.STOP_MODES}, got {stop_mode!r}'
            )
        self.max_evals = max_evals
        self.tol = tol
        self.stop_mode = stop_mode

    @torch.no_grad()
    def solve(
        self,
        f: FixedPointFunction,
        z0: Tensor,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Solution:
        """Solves ``z = f(z)``.

        Args:
            f (Callable): Maps a state ``(B, N)`` to a state ``(B, N)``, which must be a
                new tensor each time.
            z0 (Tensor): Initial state, floating point, ``(B, N)``.
            keep (Collection[int]): Numbers of the evaluations, counted from 1, whose
                iterates the solution keeps, as far as the solve gets. Defaults to ().
            restrict (Callable, optional): Given the int64 numbers ``(b,)`` of some
                samples, returns ``f`` for those samples, from ``(b, N)`` to ``(b, N)``.
                With it, samples that have stopped leave the batch, and no inverse
                Jacobian is returned. Not together with ``keep``. Defaults to None.

        Returns:
            Solution: The best iterate of each sample and how it was found.

        Raises:
            ValueError: If ``z0`` or the result of ``f`` has the wrong shape or dtype.
        """
        if z0.dim() != 2 or not z0.is_floating_point():
            raise ValueError(
                'z0 must be a floating point tensor of shape (B, N), '
                f'got {z0.dtype} of shape {tuple(z0.shape)}'
            )
        if keep and restrict is not None:
            raise ValueError('keep and restrict cannot be given together')
        z = z0.detach().to(torch.promote_types(z0.dtype, torch.float32))
        device = z.device.type
        interval = self.check_interval or (1 if device == 'cpu' else 3)
        n_evals = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        samples = _Samples(
            rows=torch.arange(len(z), device=z.device),
            best=z,
            residual=z.new_full((len(z),), torch.inf),
            status=torch.full_like(n_evals, SolveStatus.BUDGET_SPENT),
            n_evals=n_evals,
        )
        stopped: list[_Samples] = []
        trace: list[Tensor] = []
        iterates: dict[int, Tensor] = {}
        restricted = f
        with torch.autocast(device, enabled=False):
            history = self._init_history(z)

        for number in range(1, self.max_evals + 1):
            fz = restricted(z)
            if fz.shape != z.shape:
                raise ValueError(
                    f'f must return the shape it is given, {tuple(z.shape)}, '
                    f'got {tuple(fz.shape)}'
                )
            # Only f may run in reduced precision, not the solver's own products.
            with torch.autocast(device, enabled=False):
                fz = fz.to(z.dtype)
                g = self._residual(history, z, fz)
                current = self._measure(g, fz)
                active = samples.status == SolveStatus.BUDGET_SPENT
                improved = active & (current < samples.residual)
                samples.residual = torch.where(improved, current, samples.residual)
                samples.n_evals = samples.n_evals + active
                row = torch.where(active, current, samples.residual)
                trace.append(_full_row(row, samples, stopped) if stopped else row)
                samples.status = samples.status.masked_fill(
                    active & (current <= self.tol), SolveStatus.CONVERGED
                ).masked_fill(active & ~current.isfinite(), SolveStatus.BROKEN_DOWN)
                active = samples.status == SolveStatus.BUDGET_SPENT

                n_active = n_improved = -1  # not known
                if number % interval == 0:
                    n_active, n_improved = torch.stack(
                        [active.sum(), improved.sum()]
                    ).tolist()
                # Copies of whole states are left out where all samples go one way.
                if n_improved == len(z):
                    samples.best = z
                elif n_improved != 0:
                    samples.best = choose(improved, z, samples.best)
                if number in keep:
                    finite = current.isfinite().unsqueeze(1)
                    iterates[number] = torch.where(finite, z, samples.best)
                if number == self.max_evals or n_active == 0:
                    break
                if restrict is not None and 0 < n_active < len(z):
                    # By numbers: each look-up by a mask would wait for the device.
                    order = active.argsort(descending=True, stable=True)
                    rows, gone = order[:n_active], order[n_active:]
                    stopped.append(samples.select(gone))
                    samples = samples.select(rows)
                    history.select(rows)
                    z, fz, g, active = z[rows], fz[rows], g[rows], active[rows]
                    restricted = restrict(samples.rows)
                if n_active == len(z):
                    z = self._advance(history, z, fz, g, None)
                else:
                    z = self._advance(history, z, fz, g, active)
                    z = choose(active, z, samples.best)
                del fz, g

        inverse = None if stopped else self._inverse_jacobian(history)
        samples = _Samples.merge([samples, *stopped])
        return Solution(
            state=samples.best,
            residual=samples.residual,
            status=samples.status,
            n_evals=samples.n_evals,
            trace=torch.stack(trace).nan_to_num(torch.inf, torch.inf),
            inverse_jacobian=inverse,
            iterates=iterates,
        )

    def _measure(self, g: Tensor, fz: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(g, dim=1)
        if self.stop_mode == 'abs':
            return norm
        return norm / (torch.linalg.vector_norm(fz, dim=1) + 1e-8)

    def _init_history(self, z0: Tensor) -> History:
        """Allocates what the method remembers between evaluations."""
        return History()

    def _residual(self, history: History, z: Tensor, fz: Tensor) -> Tensor:
        """Returns ``f(z) - z``, ``(B, N)``; a method that keeps it does so here."""
        return fz - z

    @abstractmethod
    def _advance(
        self,
        history: History,
        z: Tensor,
        fz: Tensor,
        g: Tensor,
        active: Optional[Tensor],
    ) -> Tensor:
        """Returns the next iterate, ``(B, N)``.

        Args:
            history (History): What :meth:`_init_history` returned; updated in place.
            z (Tensor): Current iterate, ``(B, N)``.
            fz (Tensor): ``f(z)``, ``(B, N)``.
            g (Tensor): ``f(z) - z``, ``(B, N)``; may be overwritten.
            active (Tensor, optional): Samples that have not stopped, bool, ``(B,)``;
                None for all. The iterate of the others is not used, and may be NaN.
        """

    def _inverse_jacobian(self, history: History) -> Optional[LowRankInverse]:
        """Returns the approximate inverse Jacobian the method ended with, if any."""
        return None

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({arguments})'


def _full_row(row: Tensor, samples: _Samples, stopped: list[_Samples]) -> Tensor:
    """Extends a row of the trace by the samples that have left the batch."""
    rows = torch.cat([samples.rows, *(part.rows for part in stopped)])
    values = torch.cat([row, *(part.residual for part in stopped)])
    return values[rows.argsort()]
