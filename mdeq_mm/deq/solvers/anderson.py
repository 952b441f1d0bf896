"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from .base import FixedPointSolver
from .history import History, add_combination_, allocate, batched_dots, check_dtype


@dataclass
class _History(History):
    """The last residuals, their Gram matrix, the last mixed iterate, and how the ones
    before differ from each other."""

    g: Tensor
    gram: Tensor
    differences: Tensor
    mixed: Optional[Tensor] = None
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

    The mixed iterates ``z_i + mixing g_i`` are stored as differences of consecutive
    ones, which shrink as they converge, so that rounding them does little harm.

    It holds 2 x ``window`` states a sample.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        window (int): Iterates that are combined, at least 1 (which is Picard
            iteration). Defaults to 6.
        ridge (float): Regularisation of the least-squares problem, relative.
            Defaults to 1e-6.
        mixing (float): Share of the residual that is added, in (0, 1].
            Defaults to 1.0.
        history_dtype (str, optional): ``'bfloat16'`` keeps all states but one in half
            the memory. Defaults to None, the dtype of the state.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        max_evals: int = 30,
        tol: float = 1e-3,
        stop_mode: str = 'rel',
        window: int = 6,
        ridge: float = 1e-6,
        mixing: float = 1.0,
        history_dtype: Optional[str] = None,
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
        self.history_dtype = check_dtype(history_dtype)

    def _init_history(self, z0: Tensor) -> _History:
        window = min(self.window, self.max_evals)
        return _History(
            g=allocate(z0, window, self.history_dtype),
            gram=z0.new_zeros(len(z0), window, window, dtype=torch.float64),
            differences=allocate(z0, window - 1, self.history_dtype),
        )

    def _residual(self, history: _History, z: Tensor, fz: Tensor) -> Tensor:
        room = history.g[:, history.n_evals % history.g.shape[1]]
        if room.dtype == z.dtype:
            return torch.sub(fz, z, out=room)
        g = super()._residual(history, z, fz)
        room.copy_(g)
        return g

    def _advance(
        self,
        history: _History,
        z: Tensor,
        fz: Tensor,
        g: Tensor,
        active: Optional[Tensor],
    ) -> Tensor:
        number, window = history.n_evals, history.g.shape[1]
        history.n_evals += 1
        slot, used = number % window, slice(min(number + 1, window))
        # One new row of the Gram matrix an evaluation.
        (products,) = batched_dots(history.g[:, used], g)
        products = products.to(history.gram.dtype)
        history.gram[:, slot, used] = products
        history.gram[:, used, slot] = products
        alpha = self._coefficients(history.gram[:, used, used], slot)

        last = history.mixed
        mixed = history.mixed = (
            fz if self.mixing == 1 else torch.add(z, g, alpha=self.mixing)
        )
        if number == 0 or window == 1:
            return mixed
        slot, used = (number - 1) % (window - 1), slice(min(number, window - 1))
        torch.sub(mixed, last, out=history.differences[:, slot])
        # A difference is in all iterates older than itself: with their joint weight.
        weights = alpha.roll(-number - 1, 1).cumsum(1)[:, :-1].roll(number, 1)
        return add_combination_(
            mixed.clone(), -weights.to(mixed.dtype), history.differences[:, used]
        )

    def _coefficients(self, gram: Tensor, newest: int) -> Tensor:
        """Minimises the regularised quadratic form under the sum constraint.

        Args:
            gram (Tensor): Gram matrix of the residuals, ``(B, m, m)``.
            newest (int): Index of the newest residual.

        Returns:
            Tensor: Coefficients that sum to 1, ``(B, m)``.
        """
        regularised = gram.clone()
        regularised.diagonal(dim1=1, dim2=2).mul_(1 + self.ridge)
        factor, info = torch.linalg.cholesky_ex(regularised)
        ones = gram.new_ones(*gram.shape[:2], 1)
        alpha = torch.cholesky_solve(ones, factor).squeeze(2)
        alpha = alpha / alpha.sum(dim=1, keepdim=True)
        plain = torch.zeros_like(alpha)
        plain[:, newest] = 1
        solved = (info == 0) & alpha.isfinite().all(dim=1)
        return torch.where(solved.unsqueeze(1), alpha, plain)
