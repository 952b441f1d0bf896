"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from .base import FixedPointSolver, History
from .solution import batched_dot


@dataclass
class _History(History):
    """The last ``window`` mixed iterates and residuals, and the latter's Gram
    matrix."""

    mixed: Tensor
    g: Tensor
    gram: Tensor
    n_evals: int = 0


@TASK_UTILS.register_module()
class AndersonSolver(FixedPointSolver):
    """Anderson acceleration (type II) on ``g(z) = f(z) - z``.

    The next iterate is the affine combination of the last ``window`` iterates whose
    linearised residual is smallest,

    ``z <- sum_i alpha_i (z_i + mixing g_i)``, ``alpha`` minimising
    ``||sum_i alpha_i g_i||^2 + ridge sum_i alpha_i^2 ||g_i||^2`` under
    ``sum_i alpha_i = 1``.

    The ridge weighs each residual by its own norm, which makes it indifferent to the
    scale of ``f`` and keeps it from drowning the last, smallest residuals. Where the
    system cannot be solved nevertheless, that sample takes a plain mixed step.

    It holds two buffers of ``window`` states a sample.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        window (int): Iterates that are combined, at least 1 (which is Picard
            iteration). Defaults to 5.
        ridge (float): Regularisation of the least-squares problem, relative.
            Defaults to 1e-6.
        mixing (float): Share of the residual that is added, in (0, 1].
            Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        max_evals: int = 30,
        tol: float = 1e-3,
        stop_mode: str = 'rel',
        window: int = 5,
        ridge: float = 1e-6,
        mixing: float = 1.0,
    ) -> None:
        super().__init__(max_evals, tol, stop_mode)
        if not isinstance(window, int) or window < 1:
            raise ValueError(f'window must be an integer of at least 1, got {window!r}')
        if not ridge >= 0:
            raise ValueError(f'ridge must not be negative, got {ridge!r}')
        if not 0 < mixing <= 1:
            raise ValueError(f'mixing must be in (0, 1], got {mixing!r}')
        self.window = window
        self.ridge = ridge
        self.mixing = mixing

    def _init_history(self, z0: Tensor) -> _History:
        batch_size, size = z0.shape
        window = min(self.window, self.max_evals)
        mixed = z0.new_zeros(batch_size, window, size)
        gram = z0.new_zeros(batch_size, window, window, dtype=torch.float64)
        return _History(mixed, torch.zeros_like(mixed), gram)

    def _advance(
        self,
        history: _History,
        z: Tensor,
        fz: Tensor,
        g: Tensor,
        active: Optional[Tensor],
    ) -> Tensor:
        slot = history.n_evals % history.g.shape[1]
        history.n_evals += 1
        used = slice(min(history.n_evals, history.g.shape[1]))
        history.mixed[:, slot] = fz if self.mixing == 1 else z + self.mixing * g
        history.g[:, slot] = g
        # One new row of the Gram matrix an evaluation.
        products = batched_dot(history.g[:, used], g).to(history.gram.dtype)
        history.gram[:, slot, used] = products
        history.gram[:, used, slot] = products

        alpha = self._coefficients(history.gram[:, used, used], slot)
        mixed = history.mixed[:, used]
        return torch.bmm(alpha.to(mixed.dtype).unsqueeze(1), mixed).squeeze(1)

    def _coefficients(self, gram: Tensor, newest: int) -> Tensor:
        """Minimises the regularised quadratic form under the sum constraint.

        Args:
            gram (Tensor): Gram matrix of the residuals, ``(B, m, m)``.
            newest (int): Index of the newest residual.

        Returns:
            Tensor: Coefficients that sum to 1, ``(B, m)``.
        """
        inverse_norm = gram.diagonal(dim1=1, dim2=2).rsqrt()
        scaled = gram * inverse_norm.unsqueeze(1) * inverse_norm.unsqueeze(2)
        scaled.diagonal(dim1=1, dim2=2).add_(self.ridge)
        factor, info = torch.linalg.cholesky_ex(scaled)
        alpha = torch.cholesky_solve(inverse_norm.unsqueeze(2), factor).squeeze(2)
        alpha = alpha * inverse_norm
        alpha = alpha / alpha.sum(dim=1, keepdim=True)
        plain = torch.zeros_like(alpha)
        plain[:, newest] = 1
        solved = (info == 0) & alpha.isfinite().all(dim=1)
        return torch.where(solved.unsqueeze(1), alpha, plain)
