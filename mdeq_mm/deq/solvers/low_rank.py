"""Products with a few states per sample, and the inverse Jacobian made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import pad

_N_PARTS = 8


def allocate(z: Tensor, n_states: int, dtype: Optional[str] = None) -> Tensor:
    """Returns room for some states per sample, ``(B, n_states, N)``, not filled.

    Args:
        z (Tensor): A state, ``(B, N)``.
        n_states (int): States per sample.
        dtype (str, optional): Name of the dtype in which they are kept.
            Defaults to None, the dtype of ``z``.
    """
    kept = z.dtype if dtype is None else getattr(torch, dtype)
    return z.new_empty(len(z), n_states, z.shape[1], dtype=kept)


def batched_dots(rows: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
    """Returns the inner products of some states with one, for each sample.

    Args:
        rows (Tensor): The states, ``(B, m, N)``, maybe in a narrower dtype.
        *xs (Tensor): One state per sample, each ``(B, N)``.

    Returns:
        tuple[Tensor, ...]: The products ``(B, m)`` with each of ``xs``.
    """
    dtype = xs[0].dtype
    if rows.dtype == dtype:
        # x stands on the left: the other order is many times slower on CPU.
        return tuple(torch.bmm(x.unsqueeze(1), rows.mT).squeeze(1) for x in xs)
    # Only a small part of the states is in the wider dtype at any time.
    parts = [
        batched_dots(*(part.to(dtype) for part in operands))
        for operands in zip(
            rows.chunk(_N_PARTS, dim=2), *(x.chunk(_N_PARTS, dim=1) for x in xs)
        )
    ]
    return tuple(sum(products) for products in zip(*parts))


def add_combination_(x: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Adds ``sum_i weights_i rows_i`` to ``x`` in place, and returns ``x``.

    Args:
        x (Tensor): ``(B, N)``.
        weights (Tensor): ``(B, m)``, in the dtype of ``x``.
        rows (Tensor): ``(B, m, N)``, maybe in a narrower dtype.
    """
    if rows.dtype == x.dtype:
        x.unsqueeze(1).baddbmm_(weights.unsqueeze(1), rows)
        return x
    for y, part in zip(x.chunk(_N_PARTS, dim=1), rows.chunk(_N_PARTS, dim=2)):
        add_combination_(y, weights, part.to(x.dtype))
    return x


@dataclass(frozen=True, eq=False)
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

    def where(self, mask: Tensor, other: LowRankInverse) -> LowRankInverse:
        """Returns this one for the samples of a mask ``(B,)``, else the other one."""
        size, mask = max(len(x.core[0]) for x in (self, other)), mask.view(-1, 1, 1)
        mine, others = self._padded(size), other._padded(size)
        return LowRankInverse(
            torch.where(mask, mine.basis, others.basis),
            torch.where(mask, mine.core, others.core),
        )

    def _padded(self, size: int) -> LowRankInverse:
        """Returns the same matrix with zeros in further rows of ``S``."""
        missing = size - self.core.shape[1]
        return LowRankInverse(
            pad(self.basis, (0, 0, 0, missing)),
            pad(self.core, (0, missing, 0, missing)),
        )

    def _product(self, core: Tensor, x: Tensor) -> Tensor:
        # Backward, where this is used, may run under autocast.
        with torch.autocast(x.device.type, enabled=False):
            (projected,) = batched_dots(self.basis, x)
            weights = core.to(x.dtype) @ projected.unsqueeze(2)
            return add_combination_(-x, weights.squeeze(2), self.basis)
