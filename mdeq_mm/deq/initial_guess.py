"""Where the solve of an equilibrium starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor, nn

from .state import StateLayout


class InitialGuess(nn.Module, ABC):
    """Gives an :class:`EquilibriumLayer` the state its solve starts from.

    A good guess saves evaluations. It decides neither the tolerance nor, where the
    equilibrium is unique, what is found. The shallow mode starts from zero all the
    same.
    """

    @abstractmethod
    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        """Returns the guess.

        Args:
            injections (Sequence[Tensor]): Those of the solve, one ``(B, *shape_i)`` for
                each feature map.
            layout (StateLayout): Layout of the state.
            dtype (torch.dtype): Of the state.

        Returns:
            Tensor: ``(B, N)``, with a graph if it can be trained. The solve itself is
            never differentiated with respect to it.
        """

    def update(self, state: Tensor, layout: StateLayout) -> None:
        """Takes note of what a solve has found.

        Args:
            state (Tensor): The state ``(B, N)``, without a graph.
            layout (StateLayout): Layout of the state.
        """

    def reset(self) -> None:
        """Forgets earlier solves."""


def zero_state(
    injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
) -> Tensor:
    """Returns the state zero, ``(B, N)``."""
    first = injections[0]
    return torch.zeros(len(first), layout.numel, dtype=dtype, device=first.device)


@TASK_UTILS.register_module()
class ZeroGuess(InitialGuess):
    """Starts from zero, as the MDEQ paper does."""

    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        return zero_state(injections, layout, dtype)


@TASK_UTILS.register_module()
class PreviousGuess(InitialGuess):
    """Starts from what the solve before has found, for the frames of a video.

    Only in inference, that is in evaluation mode without autograd, and only if the
    shapes of the feature maps, batch size, dtype and device are those of the solve
    before; otherwise from zero. One state is kept; it is in no checkpoint, and training
    forgets it. Call :meth:`reset` where one video ends and another begins.

    What is found then depends, within the tolerance, on the images before. With
    sliding windows or test-time augmentation the solve before is one of another
    picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state: Optional[Tensor] = None
        self._key: Optional[Hashable] = None

    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        first = injections[0]
        key = self._key_of(len(first), layout, dtype, first.device)
        if self._is_inference() and key == self._key:
            return self._state
        return zero_state(injections, layout, dtype)

    def update(self, state: Tensor, layout: StateLayout) -> None:
        if self._is_inference():
            # A copy, for what stands behind may change the features in place.
            self._state = state.clone()
            self._key = self._key_of(len(state), layout, state.dtype, state.device)

    def reset(self) -> None:
        self._state = self._key = None

    def train(self, mode: bool = True) -> PreviousGuess:
        """Switches the mode; training forgets the state."""
        if mode:
            self.reset()
        return super().train(mode)

    def _is_inference(self) -> bool:
        # A frozen layer is in evaluation mode while the rest of the model trains.
        return not (self.training or torch.is_grad_enabled())

    @staticmethod
    def _key_of(
        batch_size: int, layout: StateLayout, dtype: torch.dtype, device: torch.device
    ) -> Hashable:
        # Tensors made in torch's inference mode cannot be changed outside of it.
        inference_mode = torch.is_inference_mode_enabled()
        return batch_size, layout.shapes, dtype, device, inference_mode
