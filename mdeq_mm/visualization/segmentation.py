"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Union

import mmcv
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel

# RGB image, ground truth, prediction.
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


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
        dataset (BaseDataset): A data set with ground truth and the pipeline of testing.
        n_samples (int): Number of samples, at most.

    Returns:
        list[tuple]: For each sample the RGB image, uint8 ``(H, W, 3)``, and the label
        maps ``(H, W)`` of ground truth and prediction.
    """
    n_samples = min(n_samples, len(dataset))
    samples = []
    for position in range(n_samples):
        data = dataset[position * len(dataset) // n_samples]
        (result,) = model.test_step({key: [value] for key, value in data.items()})
        image = mmcv.imread(result.img_path, channel_order='rgb')
        truth, prediction = (
            labels.data[0].cpu().numpy()
            for labels in (result.gt_sem_seg, result.pred_sem_seg)
        )
        samples.append((image, truth, prediction))
    return samples


def plot_segmentations(
    samples: Sequence[Sample],
    path: Union[str, Path],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    title: str = '',
) -> None:
    """Draws images, ground truths and predictions, one column per sample.

    Args:
        samples (Sequence[tuple]): For each sample the RGB image, uint8 ``(H, W, 3)``,
            and the label maps ``(H, W)`` of ground truth and prediction.
        path (str or Path): File to write. Its ending decides the format.
        classes (Sequence[str]): Name of each class.
        palette (Sequence[Sequence[int]]): RGB colour of each class, 0 to 255.
        title (str): Title of the plot. Defaults to ''.
    """
    height, width = samples[0][1].shape
    inches = 1.7 * width / height
    figure = Figure(figsize=(inches * len(samples), 6.1), layout='constrained')
    grid = figure.subplots(3, len(samples), squeeze=False)
    for column, (image, truth, prediction) in zip(grid.T, samples):
        pictures = (
            image,
            paint(image, truth, palette),
            paint(image, prediction, palette),
        )
        for axes, picture in zip(column, pictures):
            axes.imshow(picture, interpolation='nearest')
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, name in zip(grid[:, 0], ('image', 'ground truth', 'prediction')):
        axes.set_ylabel(name)
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
