"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from .base import FixedPointSolver, LowRankInverse


@dataclass
class _History:
    u: Tensor
    v: Tensor
    n_updates: int = 0
    step: Optional[Tensor] = None
    g: Optional[Tensor] = None

    @property
    def inverse(self) -> LowRankInverse:
        return LowRankInverse(self.u[:, : self.n_updates], self.v[:, : self.n_updates])


@TASK_UTILS.register_module()
class BroydenSolver(FixedPointSolver):
    """Broyden's "good" method on ``g(z) = f(z) - z``.

    The inverse Jacobian of ``g`` starts as ``-I`` (so that the first step is Picard's)
    and gets one rank-one update an evaluation by the Sherman-Morrison formula. Each
    sample has its own. This is the solver of the MDEQ paper (section 3.2).

    It holds two buffers of ``memory`` states a sample.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        memory (int): Rank-one updates that are kept, at least 1; the oldest is dropped
            for a new one. Defaults to 10.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        max_evals: int = 30,
        tol: float = 1e-3,
        stop_mode: str = 'rel',
        memory: int = 10,
    ) -> None:
        super().__init__(max_evals, tol, stop_mode)
        if not isinstance(memory, int) or memory < 1:
            raise ValueError(f'memory must be an integer of at least 1, got {memory!r}')
        self.memory = memory

    def _init_history(self, z0: Tensor) -> _History:
        batch_size, size = z0.shape
        # The first evaluation brings no update and the last one is not stepped from.
        rank = min(self.memory, max(self.max_evals - 2, 0))
        u = z0.new_zeros(batch_size, rank, size)
        return _History(u, torch.zeros_like(u))

    def _step(self, history: _History, z: Tensor, g: Tensor, active: Tensor) -> Tensor:
        if history.step is None:
            history.step, history.g = g, g
            return g
        s = history.step
        # s was -H g_old, so H y for y = g - g_old needs no second product with H.
        h_g_old = -s
        slot = history.n_updates % history.u.shape[1]
        u, v = history.u[:, slot], history.v[:, slot]
        if history.n_updates >= history.u.shape[1]:
            h_g_old = h_g_old - u * _dot(v, history.g)
            u.masked_fill_(active.unsqueeze(1), 0)
        h_g = history.inverse.apply(g)
        h_y = h_g - h_g_old

        # H += (s - H y) (s^T H) / (s^T H y), left out where the quotient is undefined.
        denominator = _dot(s, h_y)
        singular = denominator.abs() <= torch.finfo(s.dtype).eps * _dot(s, s)
        u_new = (s - h_y) / denominator.masked_fill(singular, torch.inf)
        v_new = history.inverse.apply_transpose(s)
        u.copy_(torch.where(active.unsqueeze(1), u_new, u))
        v.copy_(torch.where(active.unsqueeze(1), v_new, v))
        history.n_updates += 1

        history.step = -(h_g + u_new * _dot(s, h_g))
        history.g = g
        return history.step

    def _inverse_jacobian(self, history: _History) -> LowRankInverse:
        return history.inverse


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b, dim=1).unsqueeze(1)
