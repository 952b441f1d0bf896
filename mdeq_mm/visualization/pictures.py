"""Pictures of how solves go, several of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Optional

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..deq import ImplicitGradient
from .convergence import draw_convergence
from .examination import Examination, Step
from .residuals import draw_residual_maps

DPI = 110
# Wider pictures of one image are drawn smaller.
MOST_ASPECT = 3.0


def picture_input(inputs: object) -> Optional[np.ndarray]:
    """Returns what a model sees, from the ``inputs`` of a data sample.

    Args:
        inputs (object): What the pipelines of the toolboxes make of an image: BGR,
            uint8, ``(3, H, W)``.

    Returns:
        np.ndarray: RGB image, uint8, ``(H, W, 3)``; None of anything else.
    """
    if (
        not isinstance(inputs, torch.Tensor)
        or inputs.dtype != torch.uint8
        or inputs.dim() != 3
        or len(inputs) != 3
    ):
        return None
    return inputs.flip(0).permute(1, 2, 0).cpu().numpy()


def picture_residuals(solves: Mapping[str, Examination]) -> np.ndarray:
    """Draws the residual of the whole state and of each branch against evaluations.

    Args:
        solves (Mapping[str, Examination]): The solves by name, at least one.

    Returns:
        np.ndarray: RGB image, uint8, ``(H, W, 3)``.
    """

    def draw(axes: Axes, solve: Examination) -> None:
        solver = solve.mode.solver
        names = ['all branches', *solve.branches]
        tol = solver.tol or None
        draw_convergence(
            axes, solve.traces, tol, stop_mode=solver.stop_mode, names=names
        )

    return _side_by_side(solves, draw)


def picture_adjoint(solves: Mapping[str, Examination]) -> Optional[np.ndarray]:
    """Draws the residual of the adjoint solves against vector-Jacobian products.

    Args:
        solves (Mapping[str, Examination]): The solves by name, at least one.

    Returns:
        np.ndarray: RGB image, uint8, ``(H, W, 3)``; None if no solve has an adjoint.
    """

    def draw(axes: Axes, solve: Examination) -> None:
        gradient = solve.mode.gradient
        solver = gradient.solver if isinstance(gradient, ImplicitGradient) else None
        if solve.adjoint is None or solver is None:
            axes.text(0.5, 0.5, 'no adjoint solve', ha='center')
            return
        draw_convergence(
            axes, solve.adjoint.trace, solver.tol or None, stop_mode=solver.stop_mode
        )
        axes.set_xlabel('vector-Jacobian products')
        axes.set_ylabel('residual of the adjoint system')

    if all(solve.adjoint is None for solve in solves.values()):
        return None
    return _side_by_side(solves, draw)


def picture_features(solves: Mapping[str, Examination]) -> np.ndarray:
    """Draws features and residuals on the way, one column per evaluation.

    The colours of a branch are the first three principal components of its features
    where the solves end, the same ones for all solves and columns.

    Args:
        solves (Mapping[str, Examination]): The solves of one architecture by name, at
            least one.

    Returns:
        np.ndarray: RGB image, uint8, ``(H, W, 3)``.
    """
    ends = [solve.steps[-1] for solve in solves.values()]
    n_rows = len(ends[0].features) + 1
    n_columns = max(len(solve.steps) for solve in solves.values())
    # At least as wide as the name of a step.
    width = max(1.7 * _aspect(ends[0].residual), 1.0)
    figure = Figure(
        figsize=(width * n_columns + 0.6, 1.9 * n_rows * len(solves) + 1.2),
        layout='constrained',
        dpi=DPI,
    )
    grid = figure.subplots(n_rows * len(solves), n_columns, squeeze=False)
    places: list[Axes] = []
    maps: list[np.ndarray] = []
    for number, (name, solve) in enumerate(solves.items()):
        block = grid[number * n_rows : (number + 1) * n_rows]
        for axes, step in zip(block[0], solve.steps):
            axes.set_title(step.name, fontsize=9)
        middle = block[0, (len(solve.steps) - 1) // 2]
        if name:
            title = f'{name}\n\n{middle.get_title()}'
            middle.set_title(title, fontsize=9, parse_math=False)
        _draw_branches(block[:-1], solve, ends)
        block[-1, 0].set_ylabel('residual', fontsize=9)
        places += list(block[-1, : len(solve.steps)])
        maps += [step.residual for step in solve.steps]
    draw_residual_maps(figure, places, maps, bar='bottom')
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=bool(axes.images))
    return _render(figure)


def picture_slow_places(solves: Mapping[str, Examination]) -> np.ndarray:
    """Draws where in the image the residual is large when the solve ends.

    Args:
        solves (Mapping[str, Examination]): The solves by name, at least one.

    Returns:
        np.ndarray: RGB image, uint8, ``(H, W, 3)``: what the model sees, if known, and
        the residual of each solve on one scale of colours.
    """
    image = next(iter(solves.values())).image
    n_columns = len(solves) + (image is not None)
    maps = [solve.steps[-1].residual for solve in solves.values()]
    size = maps[0].shape if image is None else image.shape[:2]
    width = 3.2 * _aspect(maps[0]) * n_columns + 1
    figure = Figure(figsize=(width, 3.7), layout='constrained', dpi=DPI)
    grid = figure.subplots(1, n_columns, squeeze=False)[0]
    for axes in grid:
        axes.set(xticks=[], yticks=[])
    if image is not None:
        grid[0].imshow(image)
        grid[0].set_title('what the model sees', fontsize=10)
    places = grid[-len(solves) :]
    for axes, name in zip(places, solves):
        axes.set_title(name, fontsize=10, parse_math=False)
    draw_residual_maps(figure, places, maps, [size] * len(maps))
    return _render(figure)


def principal_colours(
    features: Sequence[np.ndarray], ends: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Colours feature maps by the first three principal components of some of them.

    Args:
        features (Sequence[np.ndarray]): Maps to colour, ``(C, H, W)``.
        ends (Sequence[np.ndarray]): Maps of the same channels that the components and
            the range of the colours are taken from.

    Returns:
        list[np.ndarray]: RGB of each map, in [0, 1], ``(H, W, 3)``. With fewer than
        three channels the colours that are left are 0.5, and so is what is not finite.
    """
    places = np.concatenate([_rows(end) for end in ends])
    places = np.where(np.isfinite(places), places, 0)
    centre = places.mean(0)
    covariance = (places - centre).T @ (places - centre)
    directions = np.linalg.eigh(covariance)[1][:, :-4:-1]
    low, high = np.percentile((places - centre) @ directions, (2, 98), axis=0)
    span = np.maximum(high - low, np.finfo(float).tiny)
    pictures = []
    for feature in features:
        colours = np.full((feature[0].size, 3), 0.5)
        rows = _rows(feature)
        known = np.isfinite(rows).all(1)
        values = ((rows[known] - centre) @ directions - low) / span
        colours[known, : values.shape[1]] = values.clip(0, 1)
        pictures.append(colours.reshape(*feature.shape[1:], 3))
    return pictures


def _rows(feature: np.ndarray) -> np.ndarray:
    """Returns the channels of each place as a row."""
    return feature.reshape(len(feature), -1).T.astype(float)


def _draw_branches(grid: np.ndarray, solve: Examination, ends: Sequence[Step]) -> None:
    """Draws the features of a solve, one row per branch, one column per step."""
    for number, (row, name) in enumerate(zip(grid, solve.branches)):
        row[0].set_ylabel(name.replace(': ', '\n'), fontsize=9)
        maps = principal_colours(
            [step.features[number] for step in solve.steps],
            [end.features[number] for end in ends],
        )
        for axes, colours in zip(row, maps):
            axes.imshow(colours, interpolation='nearest')


def _side_by_side(
    solves: Mapping[str, Examination], draw: Callable[[Axes, Examination], None]
) -> np.ndarray:
    """Draws a plot of each solve, with the same axes."""
    figure = Figure(figsize=(5.6 * len(solves), 4), layout='constrained', dpi=DPI)
    grid = figure.subplots(1, len(solves), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, solve) in zip(grid, solves.items()):
        draw(axes, solve)
        axes.set_title(name, fontsize=10, parse_math=False)
    return _render(figure)


def _aspect(values: np.ndarray) -> float:
    """Returns width by height of a picture, within bounds."""
    return min(max(values.shape[1] / values.shape[0], 1 / MOST_ASPECT), MOST_ASPECT)


def _render(figure: Figure) -> np.ndarray:
    """Returns a figure as an RGB image, uint8, ``(H, W, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
