"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.structures import PixelData

from ..benchmark import NamedSamples, read_image

# RGB image, ground truth if there is one, prediction.
Sample = tuple[np.ndarray, Optional[np.ndarray], np.ndarray]


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
    model: BaseModel, dataset: BaseDataset, n_samples: int
) -> list[Sample]:
    """Predicts samples that are evenly spaced over a data set.

    Args:
        model (BaseModel): A segmentor of MMSegmentation, in evaluation mode.
        dataset (BaseDataset): A data set with the pipeline of testing.
        n_samples (int): Number of samples, at most.

    Returns:
        list[tuple]: For each sample the RGB image, uint8 ``(H, W, 3)``, and the label
        maps ``(H, W)`` of ground truth and prediction. Without annotations the ground
        truth is None.

    Raises:
        ValueError: If a sample cannot be loaded. The message names its files.
    """
    named, flag = NamedSamples(dataset), color_flag(dataset)
    n_samples = min(n_samples, len(dataset))
    samples = []
    for position in range(n_samples):
        data = named[position * len(dataset) // n_samples]
        (result,) = model.test_step({key: [value] for key, value in data.items()})
        image = read_image(result.img_path, flag)[..., ::-1]
        truth = _labels(result.gt_sem_seg) if 'gt_sem_seg' in result else None
        samples.append((image, truth, _labels(result.pred_sem_seg)))
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
) -> None:
    """Draws images, ground truths and predictions, one column per sample.

    Without any ground truth the pictures have two rows instead of three.

    Args:
        samples (Sequence[tuple]): For each sample the RGB image, uint8 ``(H, W, 3)``,
            and the label maps ``(H, W)`` of ground truth, or None, and prediction.
        path (str or Path): File to write. Its ending decides the format.
        classes (Sequence[str]): Name of each class.
        palette (Sequence[Sequence[int]]): RGB colour of each class, 0 to 255.
        title (str): Title of the plot. Defaults to ''.
    """
    rows = ['image', 'ground truth', 'prediction']
    if all(truth is None for _, truth, _ in samples):
        rows.remove('ground truth')
    height, width = samples[0][2].shape
    inches = 1.7 * width / height
    figure = Figure(
        figsize=(inches * len(samples), 1 + 1.7 * len(rows)), layout='constrained'
    )
    grid = figure.subplots(len(rows), len(samples), squeeze=False)
    for column, (image, truth, prediction) in zip(grid.T, samples):
        pictures = {'image': image, 'prediction': paint(image, prediction, palette)}
        if truth is not None:
            pictures['ground truth'] = paint(image, truth, palette)
        for axes, row in zip(column, rows):
            axes.set_xticks([])
            axes.set_yticks([])
            if row in pictures:
                axes.imshow(pictures[row], interpolation='nearest')
    for axes, row in zip(grid[:, 0], rows):
        axes.set_ylabel(row)
    figure.legend(
        handles=[
            Patch(color=(red / 255, green / 255, blue / 255), label=name)
            for name, (red, green, blue) in zip(classes, palette)
        ],
        loc='outside lower center',
        ncols=min(len(classes), 2 * len(samples)),
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
    )
    figure.suptitle(title)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
