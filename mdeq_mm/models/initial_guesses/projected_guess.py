"""A learned initial guess."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor, nn
from torch.nn import functional as F

from ...deq import InitialGuess, StateLayout


@TASK_UTILS.register_module()
class ProjectedGuess(InitialGuess):
    """Starts from one convolution of the finest injection for each branch.

    The injection is averaged to the size of a branch and convolved to its channels.
    :class:`InitialGuessLossHook` trains the convolutions towards the equilibrium; no
    gradient of that loss reaches the injection or the cell, and none of the other
    losses reaches the convolutions. The idea is that of skip DEQs (Pal et al.,
    "Continuous Deep Equilibrium Models: Training Neural ODEs Faster by Integrating Them
    to Infinity", 2022).

    Args:
        channels (Sequence[int]): Channels of each branch, finest first. As
            ``MDEQ(initial_guess=...)`` it is filled in.
        kernel_size (int): Of the convolutions, odd. Defaults to 1.

    Attributes:
        supervised (bool): Whether something trains the convolutions, as
            :class:`InitialGuessLossHook` says of itself. Defaults to False.

    Raises:
        ValueError: If ``kernel_size`` is out of its range.
        RuntimeError: In training, if the convolutions can be trained and nothing does
            it. Several processes would otherwise wait for their gradients.
    """

    def __init__(self, channels: Sequence[int], kernel_size: int = 1) -> None:
        super().__init__()
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f'kernel_size must be an odd positive integer, got {kernel_size!r}'
            )
        self.supervised = False
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[0], width, kernel_size, padding=kernel_size // 2)
            for width in channels
        )

    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        if (
            self.training
            and torch.is_grad_enabled()
            and trainable
            and not self.supervised
        ):
            raise RuntimeError(
                'nothing trains the convolutions of ProjectedGuess: add '
                "dict(type='InitialGuessLossHook') to custom_hooks, or freeze them "
                'with requires_grad_(False)'
            )
        finest = injections[0].detach()
        guesses = [
            conv(F.adaptive_avg_pool2d(finest, shape[1:]))
            for conv, shape in zip(self.convs, layout.shapes)
        ]
        return layout.pack(guesses).to(dtype)
