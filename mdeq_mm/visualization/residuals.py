"""Where in an image the equilibrium is exact, and where less so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Optional

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..deq import EquilibriumLayer, ForwardPass, StateLayout

RESIDUAL = r'$\|f(z)-z\|$ relative to $\|f(z)\|$'


def residuals_by_place(layout: StateLayout, z: Tensor, fz: Tensor) -> Tensor:
    r"""Returns the residual at each place of the finest feature map.

    That is the length of ``f(z) - z`` over the channels at that place, relative to the
    root mean square of the length of ``f(z)`` over the map. So the root mean square of
    a map is the relative residual of the whole resolution.

    Args:
        layout (StateLayout): Layout of a state of images, whose feature maps are
            ``(B, C_i, H_i, W_i)``.
        z (Tensor): The state, ``(B, N)``.
        fz (Tensor): ``f(z)``, ``(B, N)``.

    Returns:
        Tensor: The maps ``(B, H, W)`` of the largest ``H * W``, in the dtype of the
        state.

    Raises:
        ValueError: If the feature maps are not of images.
    """
    if any(len(shape) != 3 for shape in layout.shapes):
        raise ValueError(
            'layout must be of feature maps of shape (B, C, H, W), got '
            f'{layout.shapes} (batch dimension left out)'
        )
    finest = max(
        range(len(layout.shapes)),
        key=lambda i: layout.shapes[i][1] * layout.shapes[i][2],
    )
    difference = layout.unpack(fz - z)[finest].norm(dim=1)
    length = layout.unpack(fz)[finest].norm(dim=1)
    scale = length.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return difference / scale.clamp_min(torch.finfo(scale.dtype).tiny)


@torch.no_grad()
def residual_maps(forward_pass: ForwardPass) -> Tensor:
    """Returns the residual of a pass at each place of the finest feature map.

    ``f`` is evaluated once.

    Args:
        forward_pass (ForwardPass): A pass over images.

    Returns:
        Tensor: The maps ``(B, H, W)``; see :func:`residuals_by_place`.

    Raises:
        ValueError: If the feature maps are not of images.
    """
    state = forward_pass.state.detach()
    return residuals_by_place(forward_pass.layout, state, forward_pass.f(state))


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

    with layer.observing(observe):
        yield maps


def draw_residual_maps(
    figure: Figure,
    axes: Sequence[Axes],
    maps: Sequence[np.ndarray],
    sizes: Optional[Sequence[tuple[int, ...]]] = None,
    bar: Literal['right', 'bottom'] = 'right',
) -> None:
    """Draws residual maps on one logarithmic scale, with the bar of its colours.

    Args:
        figure (Figure): The figure.
        axes (Sequence[Axes]): Where to draw each map.
        maps (Sequence[np.ndarray]): The maps, ``(h, w)``. A place without a finite
            residual stays empty.
        sizes (Sequence[tuple], optional): Height and width to draw each map in.
            Defaults to None, those of the map.
        bar (str): Side of all maps on which the bar is. Defaults to ``'right'``.
    """
    values = np.concatenate([values.ravel() for values in maps])
    values = values[np.isfinite(values)]
    high = max(float(values.max(initial=0)), torch.finfo(torch.float32).tiny)
    # A few places that happen to be exact must not stretch the scale.
    low = max(float(np.percentile(values, 1)) if values.size else 0, 1e-4 * high)
    norm = LogNorm(low, high)
    colours = ScalarMappable(norm, 'magma')
    for place, values, (rows, columns) in zip(
        axes, maps, sizes or [values.shape for values in maps]
    ):
        place.imshow(
            values.clip(low),
            norm=norm,
            cmap=colours.cmap,
            extent=(0, columns, rows, 0),
        )
    aspect = 20 if bar == 'right' else 60
    figure.colorbar(colours, ax=list(axes), label=RESIDUAL, location=bar, aspect=aspect)
