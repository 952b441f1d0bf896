"""Group norm that does not divide by the standard deviation."""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class MeanOnlyGroupNorm(nn.GroupNorm):
    """Subtracts the mean of each group of channels per sample, and nothing else.

    Group norm magnifies a small input without bound. This norm does not: its Lipschitz
    constant is 1 without affine parameters, and with them at most the largest absolute
    gain (Sato and Iiduka, arXiv 2602.03297).

    Args:
        num_channels (int): Channels of the input.
        num_groups (int): Groups of channels.
        eps (float): Not used, since nothing is divided. mmcv passes it to every norm.
            Defaults to 1e-5.
        affine (bool): Whether each channel has a gain and an offset. Defaults to True.
    """

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the norm.

        Args:
            x (Tensor): Input, ``(B, C, H, W)``.

        Returns:
            Tensor: Output of the same shape.
        """
        grouped = (self.num_groups, -1)
        means = x.mean((2, 3)).unflatten(1, grouped).mean(2, keepdim=True)
        if not self.affine:
            size = self.num_channels // self.num_groups
            return x - means.expand(-1, -1, size).flatten(1)[..., None, None]
        # The mean becomes a part of the offset, so that the maps are read three times
        # and not four. Reduced precision stays what it is.
        gain, offset = (p.unflatten(0, grouped) for p in (self.weight, self.bias))
        offset = (offset - gain * means).flatten(1).to(x.dtype)
        scaled = x * self.weight.to(x.dtype)[:, None, None]
        return scaled.add_(offset[..., None, None])
