"""The residual block of one resolution and its variational dropout."""

from __future__ import annotations

from typing import Optional

import torch
from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class FreezableNorm(nn.Module):
    """A weight normalisation that can be held at a weight computed before.

    Args:
        norm (nn.Module): The parametrization that computes the weight.

    Attributes:
        held (Tensor, optional): The weight it is held at, None for none.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.held: Optional[Tensor] = None

    def forward(self, *originals: Tensor) -> Tensor:
        return self.norm(*originals) if self.held is None else self.held

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Returns what the parametrization computes ``weight`` from."""
        return self.norm.right_inverse(weight)


def freezable_weight_norm(conv: nn.Module) -> nn.Module:
    """Weight-normalises a convolution for each output channel.

    As ``torch.nn.utils.parametrizations.weight_norm``, with the same keys in the state
    dict, but its weight can be held fixed, see :class:`FreezableNorm`.
    """
    weight_norm(conv)
    norms = conv.parametrizations['weight']
    norms[0] = FreezableNorm(norms[0])
    return conv


class VariationalDropout(nn.Module):
    """Dropout of whole channels whose mask is drawn once for many calls.

    While it holds a Bernoulli mask ``(B, C, 1, 1)``, scaled by ``1 / (1 - p)``, every
    call applies it (Gal and Ghahramani, "A Theoretically Grounded Application of
    Dropout in Recurrent Neural Networks"). Without a mask, as in evaluation, it is the
    identity.

    Args:
        p (float): Probability that a channel is dropped, in [0, 1).
        channels (int): Channels of the input.

    Attributes:
        held (Tensor, optional): The mask, None for none.

    Raises:
        ValueError: If ``p`` is out of its range.
    """

    def __init__(self, p: float, channels: int) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f'dropout must be in [0, 1), got {p!r}')
        self.p = p
        self.channels = channels
        self.held: Optional[Tensor] = None

    def draw(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> Optional[Tensor]:
        """Returns a new mask in training with ``p > 0``, None otherwise."""
        if not self.training or self.p == 0:
            return None
        keep = 1 - self.p
        shape = (batch_size, self.channels, 1, 1)
        return (
            torch.empty(shape, device=device, dtype=dtype).bernoulli_(keep).div_(keep)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x if self.held is None else x * self.held.to(x.dtype)

    def extra_repr(self) -> str:
        return f'p={self.p}, channels={self.channels}'


class ResidualBlock(nn.Module):
    """Residual block of one branch (MDEQ paper, section 3.1 and figure 2).

    ``h = ReLU(GN(conv(z)))``, ``h = GN(drop(conv(h)) + x) + z``, result
    ``GN(ReLU(h))``. Both convolutions are weight-normalised.

    Args:
        channels (int): Channels of input and output.
        expansion (int): Channels between the convolutions, in multiples of
            ``channels``. Defaults to 5.
        num_groups (int): Groups of every GroupNorm. Defaults to 8.
        num_big_kernels (int): How many of the two convolutions, counted from the first,
            are 5x5 instead of 3x3. Defaults to 0.
        dropout (float): Probability of the variational dropout. Defaults to 0.0.
        conv_cfg (dict, optional): Config of the convolutions. Defaults to None
            (``Conv2d``).
        act_cfg (dict): Config of the activation. Defaults to ``dict(type='ReLU')``.
    """

    def __init__(
        self,
        channels: int,
        expansion: int = 5,
        num_groups: int = 8,
        num_big_kernels: int = 0,
        dropout: float = 0.0,
        conv_cfg: Optional[dict] = None,
        act_cfg: dict = dict(type='ReLU'),
    ) -> None:
        super().__init__()
        inner = channels * expansion
        norm_cfg = dict(type='GN', num_groups=num_groups)

        def conv(in_channels: int, out_channels: int, big: bool) -> nn.Module:
            size = 5 if big else 3
            return freezable_weight_norm(
                build_conv_layer(
                    conv_cfg,
                    in_channels,
                    out_channels,
                    size,
                    padding=size // 2,
                    bias=False,
                )
            )

        self.conv1 = conv(channels, inner, num_big_kernels >= 1)
        self.norm1 = build_norm_layer(norm_cfg, inner)[1]
        self.conv2 = conv(inner, channels, num_big_kernels >= 2)
        self.norm2 = build_norm_layer(norm_cfg, channels)[1]
        self.norm3 = build_norm_layer(norm_cfg, channels)[1]
        self.dropout = VariationalDropout(dropout, channels)
        self.act = build_activation_layer(act_cfg)

    def forward(self, z: Tensor, injection: Optional[Tensor] = None) -> Tensor:
        """Applies the block.

        Args:
            z (Tensor): State of the branch, ``(B, C, H, W)``.
            injection (Tensor, optional): Injection of the same shape.

        Returns:
            Tensor: Of the same shape.
        """
        h = self.act(self.norm1(self.conv1(z)))
        h = self.dropout(self.conv2(h))
        if injection is not None:
            h = h + injection
        h = self.act(self.norm2(h) + z)
        return self.norm3(h)
