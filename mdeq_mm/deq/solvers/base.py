"""What every fixed-point solver shares: the loop, the stopping rule and the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Callable, Optional

import torch
from torch import Tensor

FixedPointFunction = Callable[[Tensor], Tensor]


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
    """The matrix ``H = -I + U V^T`` of each sample, without ever forming it.

    Broyden's method approximates with it the inverse Jacobian of ``f(z) - z``.

    Attributes:
        u (Tensor): Left factors, ``(B, m, N)``.
        v (Tensor): Right factors, ``(B, m, N)``.
    """

    u: Tensor
    v: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Returns ``H x`` for ``x`` of shape ``(B, N)``."""
        return self._product(self.u, self.v, x)

    def apply_transpose(self, x: Tensor) -> Tensor:
        """Returns ``H^T x`` for ``x`` of shape ``(B, N)``."""
        return self._product(self.v, self.u, x)

    @staticmethod
    def _product(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        coefficients = torch.bmm(right, x.unsqueeze(2))
        return torch.baddbmm(
            x.unsqueeze(1), coefficients.transpose(1, 2), left, beta=-1
        ).squeeze(1)


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

    Raises:
        ValueError: If an argument is out of its range.
    """

    STOP_MODES = ('abs', 'rel')

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
        self, f: FixedPointFunction, z0: Tensor, keep: Collection[int] = ()
    ) -> Solution:
        """Solves ``z = f(z)``.

        Args:
            f (Callable): Maps a state ``(B, N)`` to a state ``(B, N)``.
            z0 (Tensor): Initial state, floating point, ``(B, N)``.
            keep (Collection[int]): Numbers of the evaluations, counted from 1, whose
                iterates the solution keeps, as far as the solve gets. Defaults to ().

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
        z = z0.detach().to(torch.promote_types(z0.dtype, torch.float32))
        batch_size = z.shape[0]
        best = z
        residual = z.new_full((batch_size,), torch.inf)
        n_evals = torch.zeros(batch_size, dtype=torch.int64, device=z.device)
        status = torch.full_like(n_evals, SolveStatus.BUDGET_SPENT)
        active = torch.ones(batch_size, dtype=torch.bool, device=z.device)
        trace: list[Tensor] = []
        iterates: dict[int, Tensor] = {}
        with torch.autocast(z.device.type, enabled=False):
            history = self._init_history(z)

        for _ in range(self.max_evals):
            fz = f(z)
            if fz.shape != z.shape:
                raise ValueError(
                    f'f must return the shape it is given, {tuple(z.shape)}, '
                    f'got {tuple(fz.shape)}'
                )
            # Only f may run in reduced precision, not the solver's own products.
            with torch.autocast(z.device.type, enabled=False):
                fz = fz.to(z.dtype)
                g = fz - z
                current = self._measure(g, fz)
                improved = active & (current < residual)
                best = torch.where(improved.unsqueeze(1), z, best)
                residual = torch.where(improved, current, residual)
                n_evals += active
                trace.append(torch.where(active, current, residual))
                if len(trace) in keep:
                    finite = current.isfinite().unsqueeze(1)
                    iterates[len(trace)] = torch.where(finite, z, best)
                status.masked_fill_(
                    active & (current <= self.tol), SolveStatus.CONVERGED
                )
                status.masked_fill_(
                    active & ~current.isfinite(), SolveStatus.BROKEN_DOWN
                )
                active = status == SolveStatus.BUDGET_SPENT
                if len(trace) == self.max_evals or not active.any():
                    break
                step = self._step(history, z, g, active)
                z = torch.where(active.unsqueeze(1), z + step, best)

        return Solution(
            state=best,
            residual=residual,
            status=status,
            n_evals=n_evals,
            trace=torch.stack(trace).nan_to_num(torch.inf, torch.inf),
            inverse_jacobian=self._inverse_jacobian(history),
            iterates=iterates,
        )

    def _measure(self, g: Tensor, fz: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(g, dim=1)
        if self.stop_mode == 'abs':
            return norm
        return norm / (torch.linalg.vector_norm(fz, dim=1) + 1e-8)

    def _init_history(self, z0: Tensor) -> Any:
        """Allocates what the method remembers between evaluations."""
        return None

    @abstractmethod
    def _step(self, history: Any, z: Tensor, g: Tensor, active: Tensor) -> Tensor:
        """Returns the step from ``z`` to the next iterate.

        Args:
            history (Any): What :meth:`_init_history` returned; updated in place.
            z (Tensor): Current iterate, ``(B, N)``.
            g (Tensor): ``f(z) - z``, ``(B, N)``.
            active (Tensor): Samples that have not stopped, bool, ``(B,)``. The step of
                the others is not used, and may be NaN.
        """

    def _inverse_jacobian(self, history: Any) -> Optional[LowRankInverse]:
        """Returns the approximate inverse Jacobian the method ended with, if any."""
        return None

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({arguments})'
