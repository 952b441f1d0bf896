"""What a method remembers between evaluations, and products with it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Optional

import torch
from torch import Tensor

_N_PARTS = 8


@dataclass
class History:
    """What a method remembers between evaluations; tensors begin with the batch."""

    def select(self, rows: Tensor) -> None:
        """Keeps the samples of the given numbers alone."""
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                setattr(self, item.name, value[rows])


def allocate(z: Tensor, n_states: int, dtype: Optional[str]) -> Tensor:
    """Returns room for some states a sample, ``(B, n_states, N)``.

    Args:
        z (Tensor): A state, ``(B, N)``.
        n_states (int): States a sample.
        dtype (str, optional): In what they are kept, None for the dtype of ``z``.
    """
    kept = z.dtype if dtype is None else getattr(torch, dtype)
    return z.new_empty(len(z), n_states, z.shape[1], dtype=kept)


def check_dtype(dtype: Optional[str]) -> Optional[str]:
    """Returns ``history_dtype`` if it is allowed.

    Raises:
        ValueError: If it is not.
    """
    if dtype not in (None, 'bfloat16'):
        raise ValueError(f"history_dtype must be None or 'bfloat16', got {dtype!r}")
    return dtype


def batched_dots(rows: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
    """Returns the products ``(B, m)`` of ``(B, m, N)`` with each ``(B, N)``."""
    dtype = xs[0].dtype
    if rows.dtype == dtype:
        # With x on the left, the other order being many times slower on CPU.
        return tuple(torch.bmm(x.unsqueeze(1), rows.mT).squeeze(1) for x in xs)
    # In parts, so that never more than a small one is there in the wider dtype.
    parts = [
        batched_dots(*(part.to(dtype) for part in operands))
        for operands in zip(
            rows.chunk(_N_PARTS, dim=2), *(x.chunk(_N_PARTS, dim=1) for x in xs)
        )
    ]
    return tuple(sum(products) for products in zip(*parts))


def add_combination_(x: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Adds ``sum_i weights_i rows_i`` to ``x`` in place, and returns it.

    Args:
        x (Tensor): ``(B, N)``.
        weights (Tensor): ``(B, m)``.
        rows (Tensor): ``(B, m, N)``.
    """
    if rows.dtype == x.dtype:
        x.unsqueeze(1).baddbmm_(weights.unsqueeze(1), rows)
        return x
    for y, part in zip(x.chunk(_N_PARTS, dim=1), rows.chunk(_N_PARTS, dim=2)):
        add_combination_(y, weights, part.to(x.dtype))
    return x


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Returns the samples of ``new`` where the mask ``(B,)`` holds, else of ``old``."""
    if mask.device.type == 'cpu':
        # Copies of whole samples, several times faster there than torch.where.
        return torch.stack([n if m else o for m, n, o in zip(mask.tolist(), new, old)])
    return torch.where(mask.unsqueeze(1), new, old)
