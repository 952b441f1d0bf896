"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import Tensor

from ..apis import single_layer
from ..benchmark import NamedSamples, read_image
from ..deq.checks import check_number
from .residuals import draw_residual_maps, recorded_residuals


class Sample(NamedTuple):
    """An image and what a segmentor makes of it.

    Attributes:
        image (np.ndarray): RGB image, uint8, ``(H, W, 3)``.
        truth (np.ndarray, optional): Class of each pixel, ``(H, W)``.
        prediction (np.ndarray): Predicted class of each pixel, ``(H, W)``.
        residual (np.ndarray, optional): Residual of the equilibrium at each place of
            the finest feature map, ``(h, w)``; see :func:`residual_maps`. Defaults to
            None.
    """

    image: np.ndarray
    truth: Optional[np.ndarray]
    prediction: np.ndarray
    residual: Optional[np.ndarray] = None


def paint(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Sequence[int]],
    opacity: float = 0.6,
) -> np.ndarray:
    """Lays the colours of a label map over an image.

    Args:
        image (np.ndarray): RGB image, uint8, ``(H, W, 3)``.
        labels (np.ndarray): Class of each pixel, ``(H, W)``. Pixels whose number is
            beyond the palette stay unpainted; ignored pixels have such a number.
        palette (Sequence[Sequence[int]]): RGB colour of each class, 0 to 255.
        opacity (float): Weight of the colours, in [0, 1]. Defaults to 0.6.

    Returns:
        np.ndarray: RGB image, uint8, ``(H, W, 3)``.

    Raises:
        ValueError: If image and labels differ in size.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f'labels must have the size of the image, {image.shape[:2]}, '
            f'got {labels.shape}'
        )
    painted = image.astype(np.float32)
    # Heads with a single output channel predict classes as floating point numbers.
    labels = labels.astype(np.int64)
    known = labels < len(palette)
    colours = np.asarray(palette, dtype=np.float32)[labels[known]]
    painted[known] = (1 - opacity) * painted[known] + opacity * colours
    return painted.round().astype(np.uint8)


@torch.no_grad()
def segment_samples(
    model: BaseModel, dataset: BaseDataset, n_samples: int, residual: bool = False
) -> list[Sample]:
    """Predicts samples that are evenly spaced over a data set.

    Args:
        model (BaseModel): A segmentor of MMSegmentation, in evaluation mode.
        dataset (BaseDataset): A data set with the pipeline of testing.
        n_samples (int): Number of samples, at most.
        residual (bool): Whether to record where the equilibrium is how exact. It
            takes one more evaluation of ``f`` per sample. Defaults to False.

    Returns:
        list[Sample]: The samples. Without annotations their ground truth is None.

    Raises:
        ValueError: If a sample cannot be loaded. The message names its files. Also if
            a residual is wanted and the model has no single equilibrium layer, or
            passes an image through it in several parts.
    """
    named, flag = NamedSamples(dataset), color_flag(dataset)
    layer = single_layer(model) if residual else None
    n_samples = min(n_samples, len(dataset))
    samples = []
    for position in range(n_samples):
        data = named[position * len(dataset) // n_samples]
        with ExitStack() as stack:
            maps: list[Tensor] = []
            if layer is not None:
                maps = stack.enter_context(recorded_residuals(layer))
            (result,) = model.test_step({key: [value] for key, value in data.items()})
        if layer is not None and len(maps) != 1:
            raise ValueError(
                "residual needs one pass per image, as with test_cfg.mode='whole', "
                f'got {len(maps)}'
            )
        image = read_image(result.img_path, flag)[..., ::-1]
        truth = _labels(result.gt_sem_seg) if 'gt_sem_seg' in result else None
        prediction = _labels(result.pred_sem_seg)
        residuals = maps[0][0].numpy() if maps else None
        samples.append(Sample(image, truth, prediction, residuals))
    return samples


def _labels(field: PixelData) -> np.ndarray:
    return field.data[0].cpu().numpy()


def color_flag(dataset: BaseDataset) -> str:
    """Returns whether a data set turns photos as their EXIF data say."""
    flags = [getattr(t, 'color_type', None) for t in dataset.pipeline.transforms]
    ignoring = 'color_ignore_orientation'
    return ignoring if ignoring in flags else 'color'


def plot_segmentations(
    samples: Sequence[Sample],
    path: Union[str, Path],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    title: str = '',
    opacity: float = 0.6,
    height: float = 1.7,
    side_by_side: bool = False,
) -> None:
    """Draws images, ground truths, predictions and residuals, with the colours' names.

    What no sample has is left out.

    Args:
        samples (Sequence[Sample]): The samples, at least one.
        path (str or Path): File to write. Its ending decides the format.
        classes (Sequence[str]): Name of each class.
        palette (Sequence[Sequence[int]]): RGB colour of each class, 0 to 255.
        title (str): Title of the plot. Defaults to ''.
        opacity (float): Weight of the colours of the classes over the image, in [0, 1].
            Defaults to 0.6.
        height (float): Height of each picture in inches. Defaults to 1.7.
        side_by_side (bool): Whether the pictures of a sample are a row instead of a
            column. Defaults to False.

    Raises:
        ValueError: If opacity or height is out of its range.
    """
    check_number('opacity', opacity, least=0, most=1)
    check_number('height', height, above=0)
    names = _names_of_pictures(samples)
    across, down = (
        (len(names), len(samples)) if side_by_side else (len(samples), len(names))
    )
    n_rows, n_columns = samples[0].prediction.shape
    margin = 0.9 if 'residual' in names else 0
    figure = Figure(
        figsize=(height * n_columns / n_rows * across + margin, 1 + height * down),
        layout='constrained',
    )
    grid = figure.subplots(down, across, squeeze=False)
    by_sample = grid if side_by_side else grid.T
    for axes, name in zip(by_sample[0], names):
        if side_by_side:
            axes.set_title(name)
        else:
            axes.set_ylabel(name)
    for line, sample in zip(by_sample, samples):
        pictures = _painted(sample, palette, opacity)
        for axes, name in zip(line, names):
            axes.set_xticks([])
            axes.set_yticks([])
            if name in pictures:
                axes.imshow(pictures[name], interpolation='nearest')
    if 'residual' in names:
        _draw_residuals(figure, by_sample[:, -1], samples)
    _name_colours(figure, classes, palette, n_columns=2 * across)
    figure.suptitle(title)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


def _names_of_pictures(samples: Sequence[Sample]) -> list[str]:
    names = ['image', 'prediction']
    if any(sample.truth is not None for sample in samples):
        names.insert(1, 'ground truth')
    if any(sample.residual is not None for sample in samples):
        names.append('residual')
    return names


def _painted(
    sample: Sample, palette: Sequence[Sequence[int]], opacity: float
) -> dict[str, np.ndarray]:
    """Returns the pictures of a sample that are made of colours, by name."""
    pictures = {
        'image': sample.image,
        'prediction': paint(sample.image, sample.prediction, palette, opacity),
    }
    if sample.truth is not None:
        pictures['ground truth'] = paint(sample.image, sample.truth, palette, opacity)
    return pictures


def _draw_residuals(
    figure: Figure, column: np.ndarray, samples: Sequence[Sample]
) -> None:
    """Draws the residuals of the samples that have one, in the size of the image."""
    found = [
        (axes, sample.residual, sample.prediction.shape)
        for axes, sample in zip(column, samples)
        if sample.residual is not None
    ]
    places, maps, sizes = zip(*found)
    draw_residual_maps(figure, places, maps, sizes)


def _name_colours(
    figure: Figure,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    n_columns: int,
) -> None:
    """Writes the name of each class below the pictures, with its colour."""
    figure.legend(
        handles=[
            Patch(color=(red / 255, green / 255, blue / 255), label=name)
            for name, (red, green, blue) in zip(classes, palette)
        ],
        loc='outside lower center',
        ncols=min(len(classes), n_columns),
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
    )
