"""Photos that are turned when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image, UnidentifiedImageError

UPRIGHT = 1
_TAG = 0x0112
_TURNED_FLAGS = ('color', 'grayscale')


def stored_orientation(path: Any) -> int:
    """Returns the EXIF orientation of an image file, 1 to 8.

    It is 1, upright, for a file that has none or is no image, and for anything that is
    no file.
    """
    if not isinstance(path, str) or not Path(path).is_file():
        return UPRIGHT
    if b'exif' not in Path(path).read_bytes().lower():
        return UPRIGHT  # to look for the tag, Pillow would decode a PNG
    try:
        with Image.open(path) as picture:
            orientation = picture.getexif().get(_TAG, UPRIGHT)
    except (UnidentifiedImageError, OSError, SyntaxError):
        return UPRIGHT
    return orientation if orientation in range(1, 9) else UPRIGHT


def loaded_orientation(
    loader: Callable[[dict], Optional[dict]], info: dict, image: Any
) -> int:
    """Returns the EXIF orientation by which a loader turned an image, 1 if it did not.

    Which formats are turned depends on backend and version of the library, so the
    loader itself is asked, by a copy of it that is to turn nothing.

    Args:
        loader (Callable): The transform that has loaded the image.
        info (dict): What it was given.
        image (np.ndarray): What it has loaded.
    """
    orientation = stored_orientation(info.get('img_path'))
    if (
        orientation == UPRIGHT
        or getattr(loader, 'color_type', None) not in _TURNED_FLAGS
    ):
        return UPRIGHT
    plain: Any = copy(loader)
    plain.color_type += '_ignore_orientation'
    as_stored = plain(dict(info))
    is_same = as_stored is not None and np.array_equal(as_stored['img'], image)
    return UPRIGHT if is_same else orientation
