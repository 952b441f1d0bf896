"""What stands between an image and the equilibrium of an MDEQ."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule
from torch import nn


def make_stem(
    in_channels: int, channels: int, downsample_times: int, **kwargs: Any
) -> nn.Sequential:
    """Makes the stem: 3x3 convolutions, of which the first ones have stride 2.

    Args:
        in_channels (int): Channels of the image.
        channels (int): Channels of the finest branch, which all convolutions have.
        downsample_times (int): Number of convolutions of stride 2. There are at least
            two convolutions.
        **kwargs: ``conv_cfg``, ``norm_cfg`` and ``act_cfg`` of the convolutions.
    """
    strides = [2] * downsample_times + [1] * max(2 - downsample_times, 0)
    widths = [in_channels] + [channels] * (len(strides) - 1)
    # A plain container: mmengine would descend into its own and let every ConvModule
    # initialise itself again, after init_cfg.
    return nn.Sequential(
        *(
            ConvModule(width, channels, 3, stride, padding=1, **kwargs)
            for width, stride in zip(widths, strides)
        )
    )


def make_injection(
    channels: int, num_branches: int, downsample_times: int, **kwargs: Any
) -> nn.Sequential:
    """Makes the 1x1 convolution from the stem to the injection of the finest branch.

    The official model injects the stem's own output where nothing is halved and there
    are at most two branches. The result is then empty.

    Args:
        channels (int): Channels of the finest branch.
        num_branches (int): Number of branches.
        downsample_times (int): Halvings in the stem.
        **kwargs: ``conv_cfg``, ``norm_cfg`` and ``act_cfg`` of the convolution.
    """
    if downsample_times == 0 and num_branches <= 2:
        return nn.Sequential()
    return nn.Sequential(ConvModule(channels, channels, 1, **kwargs))
