"""Parts of cells that hold a tensor during a solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import ParametrizationList

from .autocast import autocast_dtype
from .cell import FreezablePart


class VariationalDropout(FreezablePart):
    """Dropout of whole channels whose mask stays the same during a solve.

    The mask is drawn once per solve, sample and channel, and scaled by ``1 / (1 - p)``
    (Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks", 2016). Outside of a frozen cell, and in evaluation mode, the part
    is the identity.

    Args:
        p (float): Probability that a channel is dropped, in [0, 1).
        channels (int): Channels of the input ``(B, channels, ...)``.

    Raises:
        ValueError: If ``p`` is out of its range.
    """

    def __init__(self, p: float, channels: int) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f'dropout must be in [0, 1), got {p!r}')
        self.p = p
        self.channels = channels

    def draw(self, injections: Sequence[Tensor]) -> Optional[Tensor]:
        """Returns a new mask ``(B, channels)`` in training with ``p > 0``."""
        if not self.training or self.p == 0:
            return None
        x = injections[0]
        keep = 1 - self.p
        mask = torch.empty(len(x), self.channels, device=x.device, dtype=x.dtype)
        return mask.bernoulli_(keep).div_(keep)

    def select(self, held: Tensor, rows: Tensor) -> Tensor:
        """Returns the masks of some samples."""
        return held[rows]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the mask that is held to ``x``, ``(B, channels, ...)``."""
        mask = self.held
        if mask is None:
            return x
        return x * mask.view(*mask.shape, *[1] * (x.dim() - 2)).to(x.dtype)

    def extra_repr(self) -> str:
        """Describes the settings."""
        return f'p={self.p}, channels={self.channels}'


class _FreezableParametrization(ParametrizationList, FreezablePart):
    """A parametrization whose tensor is computed once per solve."""

    def draw(self, injections: Sequence[Tensor]) -> Tensor:
        # Here and not at the first use. The first use is in the solve, under no_grad,
        # and would leave the parameters without a gradient.
        weight = ParametrizationList.forward(self)
        dtype = autocast_dtype(injections[0].device.type)
        if dtype is None or weight.dtype == torch.float64:
            # Autocast leaves float64 alone.
            return weight
        # Otherwise autocast would cast the weight in every evaluation.
        return weight.to(dtype=dtype)

    def forward(self) -> Tensor:
        held = self.held
        return ParametrizationList.forward(self) if held is None else held


def freezable_weight_norm(module: nn.Module) -> nn.Module:
    """Normalises the weight of a module per output channel.

    It is ``torch.nn.utils.parametrizations.weight_norm`` with the same keys in the
    state dict. In a frozen cell the weight is computed once per solve.

    Args:
        module (nn.Module): A module with a ``weight``, such as a convolution; changed
            in place.

    Returns:
        nn.Module: The module.
    """
    weight_norm(module)
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    plain = cast(ParametrizationList, parametrizations['weight'])
    # original1 is the weight before; its norms are computed from it once more. As torch
    # does for weight_norm itself, `unsafe` leaves out a check that evaluates the norm,
    # which torch 2.1 cannot do on the meta device.
    parametrizations['weight'] = _FreezableParametrization(
        list(plain), cast(nn.Parameter, plain.original1), unsafe=True
    )
    return module
