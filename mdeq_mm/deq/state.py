"""Packing of several feature maps into the one vector a solver works on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class StateLayout:
    """Where each feature map lies in the packed state.

    A solver sees one vector of ``N`` numbers per sample; the cell sees ``n`` feature
    maps. The layout translates between the two. Unpacking returns views.

    Args:
        shapes (Sequence[Sequence[int]]): Shape of every feature map without its batch
            dimension, for example ``[(32, 56, 56), (64, 28, 28)]``.

    Examples:
        >>> import torch
        >>> from mdeq_mm.deq import StateLayout
        >>> features = (torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2))
        >>> layout = StateLayout.of(features)
        >>> state = layout.pack(features)
        >>> state.shape
        torch.Size([2, 192])
        >>> [tuple(feature.shape) for feature in layout.unpack(state)]
        [(2, 8, 4, 4), (2, 16, 2, 2)]
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        self.shapes = tuple(tuple(shape) for shape in shapes)
        if not self.shapes:
            raise ValueError('shapes must name at least one feature map, got none')
        self.sizes = tuple(math.prod(shape) for shape in self.shapes)

    @classmethod
    def of(cls, features: Sequence[Tensor]) -> StateLayout:
        """Makes the layout of feature maps of shape ``(B, ...)``."""
        return cls([feature.shape[1:] for feature in features])

    @property
    def numel(self) -> int:
        """Numbers in the state of one sample (``N``)."""
        return sum(self.sizes)

    def pack(self, features: Sequence[Tensor]) -> Tensor:
        """Joins feature maps ``(B, *shape_i)`` into a state ``(B, N)``.

        Raises:
            ValueError: If the shapes are not those of the layout.
        """
        shapes = tuple(tuple(feature.shape[1:]) for feature in features)
        if shapes != self.shapes:
            raise ValueError(
                f'feature maps of shapes {shapes} do not fit the layout of shapes '
                f'{self.shapes} (batch dimension left out)'
            )
        return torch.cat([feature.flatten(1) for feature in features], dim=1)

    def unpack(self, state: Tensor) -> tuple[Tensor, ...]:
        """Splits a state ``(B, N)`` into views of shapes ``(B, *shape_i)``.

        Raises:
            ValueError: If the state is not of shape ``(B, N)``.
        """
        if state.dim() != 2 or state.shape[1] != self.numel:
            raise ValueError(
                f'a state of this layout has shape (B, {self.numel}), '
                f'got {tuple(state.shape)}'
            )
        parts = state.split(self.sizes, dim=1)
        return tuple(
            part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)
        )
