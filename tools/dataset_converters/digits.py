"""Writes the built-in data sets: handwritten digits, and scenes made from them.

The digits are the 1,797 images of 8x8 pixels that come with scikit-learn (a part of the
UCI "Optical Recognition of Handwritten Digits" data set). Every fourth image of each
class is for testing. A scene is an image of 64x64 pixels with several digits on a
textured background and an exact mask. Test scenes hold test digits alone. The result is
always the same.

    OUT/digits/{train,test}/{0..9}/*.png                   for CustomDataset
    OUT/digit_scenes/{img_dir,ann_dir}/{train,test}/*.png  for BaseSegDataset
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
from folders import parse_out_dir, write_folders
from sklearn.datasets import load_digits

SCENE_SIZE = 64
DIGIT_SIZES = (20, 32)
DIGITS_PER_SCENE = (3, 5)
N_SCENES = {'train': 1000, 'test': 200}


def split_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns ``{split: (images in 0..1 of shape (n, 8, 8), labels)}``."""
    digits = load_digits()
    images = digits.images.astype(np.float32) / 16
    is_test = np.zeros(len(images), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(digits.target == label)[::4]] = True
    return {
        'train': (images[~is_test], digits.target[~is_test]),
        'test': (images[is_test], digits.target[is_test]),
    }


def texture(rng: np.random.Generator, scene_size: int = SCENE_SIZE) -> np.ndarray:
    """Returns a dark background of two colours, RGB, ``(H, W, 3)`` in 0..1."""
    ys, xs = np.mgrid[:scene_size, :scene_size] / scene_size
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:  # gradient
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:  # stripes
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(3, 9) * along + phase)
    elif kind == 2:  # checkerboard
        cells = rng.uniform(3, 8)
        mix = ((np.floor(xs * cells) + np.floor(ys * cells)) % 2).astype(float)
    else:  # clouds
        coarse = rng.random((6, 6))
        mix = cv2.resize(
            coarse, (scene_size, scene_size), interpolation=cv2.INTER_CUBIC
        )
        mix = mix.clip(0, 1)
    colours = rng.uniform(0, 0.6, (2, 3))
    image = colours[0] + mix[..., None] * (colours[1] - colours[0])
    return image + rng.normal(0, 0.03, image.shape)


def free_window(
    rng: np.random.Generator, taken: np.ndarray, size: int, attempts: int = 30
) -> Any:
    """Returns a square window in which nothing is taken, or None."""
    for _ in range(attempts):
        top, left = rng.integers(0, len(taken) - size, 2, endpoint=True)
        window = np.s_[top : top + size, left : left + size]
        if not taken[window].any():
            return window
    return None


def paint_digits(
    rng: np.random.Generator,
    image: np.ndarray,
    digits: tuple[np.ndarray, np.ndarray],
    numbers: tuple[int, int] = DIGITS_PER_SCENE,
    sizes: tuple[int, int] = DIGIT_SIZES,
) -> Iterator[tuple[int, Any, np.ndarray]]:
    """Paints digits on an image ``(H, W, 3)``, none over another.

    Args:
        rng (Generator): What is drawn from.
        image (ndarray): The image, changed in place.
        digits (tuple): Images and labels, of which some are drawn.
        numbers (tuple): Least and largest number of digits. One that finds no room is
            left out.
        sizes (tuple): Least and largest side of a digit in pixels.

    Yields:
        tuple: Label of a digit, its square window, and which pixels of that are ink.
    """
    images, labels = digits
    taken = np.zeros(image.shape[:2], dtype=bool)
    for _ in range(rng.integers(*numbers, endpoint=True)):
        index = rng.integers(len(images))
        size = rng.integers(*sizes, endpoint=True)
        window = free_window(rng, taken, size)
        if window is None:
            continue
        taken[window] = True
        alpha = cv2.resize(images[index], (size, size), interpolation=cv2.INTER_CUBIC)
        alpha = alpha.clip(0, 1)[..., None]
        image[window] += alpha * (rng.uniform(0.6, 1, 3) - image[window])
        yield int(labels[index]), window, alpha[..., 0] > 0.5


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Returns an image in 0..1 as one of uint8."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def scene(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns an RGB image ``(H, W, 3)`` and a mask ``(H, W)``, both uint8.

    In the mask 0 is background and ``k + 1`` is digit ``k``.
    """
    image = texture(rng)
    mask = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    for label, window, ink in paint_digits(rng, image, (images, labels)):
        mask[window][ink] = label + 1
    return to_pixels(image), mask


def save(path: Path, image: np.ndarray) -> None:
    """Writes an image, BGR if it has colours, as OpenCV wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f'{path} could not be written')


def write_digits(out: Path) -> None:
    """Writes the digits, one folder per class."""
    for split, (images, labels) in split_digits().items():
        for index, (image, label) in enumerate(zip(images, labels)):
            pixels = (image * 255).round().astype(np.uint8)
            save(out / split / str(label) / f'{index:04d}.png', pixels)


def write_digit_scenes(out: Path) -> None:
    """Writes the scenes and their masks."""
    for seed, (split, (images, labels)) in enumerate(split_digits().items()):
        rng = np.random.default_rng(seed)
        for index in range(N_SCENES[split]):
            image, mask = scene(rng, images, labels)
            save(out / 'img_dir' / split / f'{index:04d}.png', image[..., ::-1])
            save(out / 'ann_dir' / split / f'{index:04d}.png', mask)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the data sets that are not there yet."""
    writers = dict(digits=write_digits, digit_scenes=write_digit_scenes)
    write_folders(parse_out_dir(__doc__, argv), writers)


if __name__ == '__main__':
    main()
