"""The classification fusion of MDEQ, as a neck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


def _conv_norm(
    conv_cfg: Optional[dict],
    norm_cfg: dict,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    conv = build_conv_layer(
        conv_cfg,
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=bias,
    )
    return nn.Sequential(conv, build_norm_layer(norm_cfg, out_channels)[1])


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions whose norms have no affine parameters."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        conv_cfg: Optional[dict],
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        plain_cfg = dict(norm_cfg, affine=False)
        self.conv1 = _conv_norm(conv_cfg, plain_cfg, in_channels, width, 1)
        self.conv2 = _conv_norm(conv_cfg, plain_cfg, width, width, 3)
        self.conv3 = _conv_norm(conv_cfg, plain_cfg, width, out_channels, 1)
        self.projection = nn.Sequential()
        if in_channels != out_channels:
            self.projection = _conv_norm(
                conv_cfg, norm_cfg, in_channels, out_channels, 1
            )
        self.act = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv1(x))
        h = self.act(self.conv2(h))
        return self.act(self.conv3(h) + self.projection(x))


@MODELS.register_module()
class MDEQFuse(BaseModule):
    """Joins the branches of MDEQ from fine to coarse for classification.

    A bottleneck widens each branch to four times its ``head_channels``. From fine to
    coarse a strided convolution brings the sum to the next branch and adds it there. A
    1x1 convolution ends in ``out_channels`` (MDEQ paper, section 4). Put the stock
    ``GlobalAveragePooling`` and ``LinearClsHead`` behind it.

    Args:
        in_channels (Sequence[int]): Channels of each branch, finest first.
        head_channels (Sequence[int]): Inner width of the bottleneck of each branch.
        out_channels (int): Channels of the result.
        conv_cfg (dict, optional): Config of the convolutions. Defaults to None
            (``Conv2d``).
        norm_cfg (dict): Config of the norms. Defaults to
            ``dict(type='BN', requires_grad=True)``.
        act_cfg (dict): Config of the activations. Defaults to ``dict(type='ReLU')``.
        init_cfg (dict or list[dict], optional): Initialization config. Defaults to that
            of the paper, normal with standard deviation 0.01.

    Raises:
        ValueError: If the lists differ in length.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        head_channels: Sequence[int],
        out_channels: int,
        conv_cfg: Optional[dict] = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        act_cfg: dict = dict(type='ReLU'),
        init_cfg: Optional[Union[dict, list]] = [
            dict(type='Normal', layer='Conv2d', std=0.01),
            dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
        ],
    ) -> None:
        super().__init__(init_cfg)
        if len(in_channels) != len(head_channels) or not len(in_channels):
            raise ValueError(
                'head_channels must have one entry for each of in_channels='
                f'{tuple(in_channels)}, got {tuple(head_channels)}'
            )
        widths = [width * _Bottleneck.expansion for width in head_channels]
        self.increase = nn.ModuleList(
            _Bottleneck(channels, width, conv_cfg, norm_cfg, act_cfg)
            for channels, width in zip(in_channels, head_channels)
        )
        self.downsample = nn.ModuleList(
            _conv_norm(conv_cfg, norm_cfg, fine, coarse, 3, stride=2, bias=True)
            for fine, coarse in zip(widths, widths[1:])
        )
        self.final = _conv_norm(
            conv_cfg, norm_cfg, widths[-1], out_channels, 1, bias=True
        )
        self.act = build_activation_layer(act_cfg)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor]:
        """Joins the branches.

        Args:
            inputs (Sequence[Tensor]): One ``(B, C_i, H_i, W_i)`` per branch. Each size
                is half the one before, rounded up.

        Returns:
            tuple[Tensor]: One map ``(B, out_channels, H_n, W_n)`` of the coarsest size.

        Raises:
            ValueError: If the number of branches is not that of ``in_channels``, or a
                size is not half the one before.
        """
        if len(inputs) != len(self.increase):
            raise ValueError(
                f'MDEQFuse was made for {len(self.increase)} branches, '
                f'got {len(inputs)}'
            )
        y = self.increase[0](inputs[0])
        for x, increase, downsample in zip(
            inputs[1:], self.increase[1:], self.downsample
        ):
            y = self.act(downsample(y))
            if y.shape[2:] != x.shape[2:]:
                raise ValueError(
                    'each branch must be half the size of the one before, rounded up, '
                    f'got {[tuple(branch.shape) for branch in inputs]}'
                )
            y = increase(x) + y
        return (self.act(self.final(y)),)
