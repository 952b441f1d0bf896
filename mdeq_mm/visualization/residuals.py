"""Where in an image the equilibrium is exact, and where less so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..deq import EquilibriumLayer, ForwardPass


@torch.no_grad()
def residual_maps(forward_pass: ForwardPass) -> Tensor:
    r"""Returns the residual at each place of the finest feature map.

    That is the length of ``f(z) - z`` over the channels at that place, relative to the
    root mean square of the length of ``f(z)`` over the map. So the root mean square of
    a map is the relative residual of the whole resolution. ``f`` is evaluated once.

    Args:
        forward_pass (ForwardPass): A pass over images, whose feature maps are
            ``(B, C_i, H_i, W_i)``.

    Returns:
        Tensor: The maps ``(B, H, W)`` of the largest ``H * W``, in the dtype of the
        state.

    Raises:
        ValueError: If the feature maps are not of images.
    """
    layout = forward_pass.layout
    if any(len(shape) != 3 for shape in layout.shapes):
        raise ValueError(
            'forward_pass must have feature maps of shape (B, C, H, W), got '
            f'{layout.shapes} (batch dimension left out)'
        )
    finest = max(
        range(len(layout.shapes)),
        key=lambda i: layout.shapes[i][1] * layout.shapes[i][2],
    )
    state = forward_pass.state.detach()
    after = forward_pass.f(state)
    difference = layout.unpack(after - state)[finest].norm(dim=1)
    length = layout.unpack(after)[finest].norm(dim=1)
    scale = length.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return difference / scale.clamp_min(torch.finfo(scale.dtype).tiny)


@contextmanager
def recorded_residuals(layer: EquilibriumLayer) -> Iterator[list[Tensor]]:
    """Collects the residual maps of the forward passes of a layer in a context.

    Args:
        layer (EquilibriumLayer): The layer of a model of images.

    Yields:
        list[Tensor]: For each pass so far its maps ``(B, H, W)``, on the CPU.
    """
    maps: list[Tensor] = []

    def observe(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        maps.append(residual_maps(forward_pass).cpu())

    with layer.register_pass_hook(observe):
        yield maps
