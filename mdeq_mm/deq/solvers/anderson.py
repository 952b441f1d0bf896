"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..checks import check_choice, check_int, check_number
from .base import FixedPointSolver, MethodState
from .low_rank import add_combination_, allocate, batched_dots


@dataclass
class AndersonState(MethodState):
    """What Anderson acceleration remembers.

    Attributes:
        g (Tensor): The last residuals, ``(B, window, N)``; the newest takes the place
            of the oldest.
        gram (Tensor): Their Gram matrix, ``(B, window, window)``, float64.
        differences (Tensor): Differences of consecutive mixed iterates,
            ``(B, window - 1, N)``, in such a ring as well.
        mixed (Tensor, optional): The last mixed iterate, ``(B, N)``; None before the
            first step.
        n_steps (int): Steps that were made.
    """

    g: Tensor
    gram: Tensor
    differences: Tensor
    mixed: Optional[Tensor] = None
    n_steps: int = 0


@TASK_UTILS.register_module()
@dataclass(frozen=True)
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

    It holds 2 x ``window`` states per sample.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        check_interval (int, optional): As in :class:`FixedPointSolver`.
            Defaults to None.
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

    window: int = 6
    ridge: float = 1e-6
    mixing: float = 1.0
    history_dtype: Optional[str] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int('window', self.window, 1)
        check_number('ridge', self.ridge, least=0)
        check_number('mixing', self.mixing, above=0, most=1)
        check_choice('history_dtype', self.history_dtype, (None, 'bfloat16'))

    def init(self, z0: Tensor) -> AndersonState:
        window = min(self.window, self.max_evals)
        return AndersonState(
            g=allocate(z0, window, self.history_dtype),
            gram=z0.new_zeros(len(z0), window, window, dtype=torch.float64),
            differences=allocate(z0, window - 1, self.history_dtype),
        )

    def residual(self, state: AndersonState, z: Tensor, fz: Tensor) -> Tensor:
        """Returns ``f(z) - z``, ``(B, N)``, and keeps it as the newest residual."""
        room = state.g[:, state.n_steps % state.g.shape[1]]
        if room.dtype == z.dtype:
            return torch.sub(fz, z, out=room)
        g = super().residual(state, z, fz)
        room.copy_(g)
        return g

    def step(self, state: AndersonState, z: Tensor, fz: Tensor, g: Tensor) -> Tensor:
        number, window = state.n_steps, state.g.shape[1]
        state.n_steps += 1
        slot, used = number % window, slice(min(number + 1, window))
        # The Gram matrix gets one new row per evaluation.
        (products,) = batched_dots(state.g[:, used], g)
        products = products.to(state.gram.dtype)
        state.gram[:, slot, used] = products
        state.gram[:, used, slot] = products
        alpha = self.coefficients(state.gram[:, used, used], slot)

        last = state.mixed
        mixed = fz if self.mixing == 1 else torch.add(z, g, alpha=self.mixing)
        state.mixed = mixed
        if last is None or window == 1:
            return mixed
        slot, used = (number - 1) % (window - 1), slice(min(number, window - 1))
        torch.sub(mixed, last, out=state.differences[:, slot])
        # A difference is in all iterates older than itself: with their joint weight.
        weights = alpha.roll(-number - 1, 1).cumsum(1)[:, :-1].roll(number, 1)
        return add_combination_(
            mixed.clone(), -weights.to(mixed.dtype), state.differences[:, used]
        )

    def coefficients(self, gram: Tensor, newest: int) -> Tensor:
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
