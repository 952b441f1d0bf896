"""An initial guess that is learned from the injection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor, nn
from torch.nn import functional as F

from ...deq import LearnedGuess, StateLayout
from ...deq.checks import check_int


@TASK_UTILS.register_module()
class ProjectedGuess(LearnedGuess):
    """Starts from one convolution of the finest injection for each branch.

    The injection is averaged to the size of a branch and convolved to its channels.
    :class:`InitialGuessLossHook` trains the convolutions towards the equilibrium. No
    gradient of that loss reaches the injection or the cell, and none of the other
    losses reaches the convolutions. The idea is that of skip DEQs (Pal et al.,
    "Continuous Deep Equilibrium Models: Training Neural ODEs Faster by Integrating Them
    to Infinity", 2022).

    Args:
        channels (Sequence[int]): Channels of each branch, finest first.
            ``MDEQ(initial_guess=...)`` fills it in.
        kernel_size (int): Size of the convolutions, odd. Defaults to 1.

    Raises:
        ValueError: If ``kernel_size`` is out of its range.
    """

    def __init__(self, channels: Sequence[int], kernel_size: int = 1) -> None:
        super().__init__()
        check_int('kernel_size', kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size!r}')
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[0], width, kernel_size, padding=kernel_size // 2)
            for width in channels
        )

    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        """Returns the guess ``(B, N)``, with a graph to the convolutions alone.

        Args:
            injections (Sequence[Tensor]): Those of the solve, ``(B, C_i, H_i, W_i)``;
                only the first one is used.
            layout (StateLayout): Layout of the state.
            dtype (torch.dtype): Of the state.

        Raises:
            RuntimeError: In training, if the convolutions can be trained and nothing
                trains them.
        """
        self.check_supervision()
        finest = injections[0].detach()
        guesses = [
            conv(F.adaptive_avg_pool2d(finest, (height, width)))
            for conv, (_, height, width) in zip(self.convs, layout.shapes)
        ]
        return layout.pack(guesses).to(dtype)
