"""The residual block of one branch."""

from __future__ import annotations

from typing import Optional

from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from torch import Tensor, nn

from ...deq import VariationalDropout, freezable_weight_norm


class ResidualBlock(nn.Module):
    """Residual block of one branch (MDEQ paper, section 3.1 and figure 2).

    ``h = ReLU(GN(conv(z)))``, ``h = GN(drop(conv(h)) + x) + z``, result
    ``GN(ReLU(h))``. Both convolutions are weight-normalised. With
    ``residual_weight`` the sum ``GN(drop(conv(h)) + x) + z`` is a mean.

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
        norm_type (str): Type of every norm. Defaults to ``'GN'``.
        residual_weight (float, optional): Weight of the residual function in a mean
            with its input, in (0, 1]. Defaults to None, their sum.
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
        norm_type: str = 'GN',
        residual_weight: Optional[float] = None,
    ) -> None:
        super().__init__()
        self.residual_weight = residual_weight
        inner = channels * expansion
        norm_cfg = dict(type=norm_type, num_groups=num_groups)

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
            injection (Tensor, optional): Injection of the same shape. Defaults to None,
                no injection.

        Returns:
            Tensor: The next state of the branch, of the same shape.
        """
        h = self.act(self.norm1(self.conv1(z)))
        h = self.dropout(self.conv2(h))
        if injection is not None:
            h = h + injection
        h = self.norm2(h)
        weight = self.residual_weight
        h = h + z if weight is None else weight * h + (1 - weight) * z
        return self.norm3(self.act(h))
