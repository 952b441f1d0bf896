"""Writes a built-in data set for detection: digits on textured ground.

An image has 96x96 pixels and several of the handwritten digits of scikit-learn, none
over another, as the scenes of digits.py have. No digit of ``val`` is in ``train``. The
annotations are in the format of COCO: category ``k + 1`` is digit ``k``, and a box
encloses the ink of a digit. The result is always the same.

    OUT/digit_detection/{train,val}/*.png
    OUT/digit_detection/annotations/{train,val}.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from digits import (
    paint_digits,
    save,
    split_digits,
    texture,
    to_pixels,
)
from folders import parse_out_dir, write_folders

IMAGE_SIZE = 96
DIGIT_SIZES = (20, 44)
DIGITS_PER_IMAGE = (2, 6)
# The split of the digits, and the number of images.
SPLITS = {'train': ('train', 1000), 'val': ('test', 200)}


def box_of(window: Any, ink: np.ndarray) -> list[int]:
    """Returns the box ``[x, y, w, h]`` that encloses the ink in a window."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    top, left = (int(side.start) for side in window)
    return [
        left + int(columns[0]),
        top + int(rows[0]),
        int(columns[-1] - columns[0]) + 1,
        int(rows[-1] - rows[0]) + 1,
    ]


def annotated_image(
    rng: np.random.Generator, digits: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Returns an RGB image of uint8, and label and box of each digit in it."""
    image = texture(rng, IMAGE_SIZE)
    found = [
        (label, box_of(window, ink))
        for label, window, ink in paint_digits(
            rng, image, digits, DIGITS_PER_IMAGE, DIGIT_SIZES
        )
    ]
    return to_pixels(image), found


def write_split(out: Path, split: str, seed: int) -> None:
    """Writes images and annotations of one split."""
    part, n_images = SPLITS[split]
    digits = split_digits()[part]
    rng = np.random.default_rng(seed)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(n_images):
        image, found = annotated_image(rng, digits)
        name = f'{index:04d}.png'
        save(out / split / name, image[..., ::-1])
        size = dict(height=IMAGE_SIZE, width=IMAGE_SIZE)
        images.append(dict(id=index, file_name=name, **size))
        for label, box in found:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    category_id=label + 1,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    categories = [dict(id=digit + 1, name=str(digit)) for digit in range(10)]
    content = dict(images=images, annotations=annotations, categories=categories)
    path = out / 'annotations' / f'{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_digit_detection(out: Path) -> None:
    """Writes both splits."""
    for seed, split in enumerate(SPLITS):
        write_split(out, split, seed)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the data set if it is not there yet."""
    writers = dict(digit_detection=write_digit_detection)
    write_folders(parse_out_dir(__doc__, argv), writers)


if __name__ == '__main__':
    main()
