"""Files that appear whole or not at all: images and videos."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Optional, Union

import cv2
import numpy as np

from ..deq.checks import check_number

# The codec of each ending: those that the wheels of OpenCV can write.
CODECS = {'.mp4': 'mp4v', '.avi': 'MJPG', '.mkv': 'mp4v', '.mov': 'mp4v'}


@contextmanager
def whole_file(path: Union[str, PathLike[str]]) -> Iterator[Path]:
    """Writes a file under another name and renames it when it is whole.

    Its folder is made. After an error there is no file, or the one before.

    Args:
        path (str or Path): The file.

    Yields:
        Path: Where to write, with the same ending.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.writing-', dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        part.replace(path)


def write_image(path: Union[str, PathLike[str]], image: np.ndarray) -> None:
    """Writes an image.

    Args:
        path (str or Path): The file. Its ending decides the format.
        image (np.ndarray): RGB image, uint8, ``(H, W, 3)``.

    Raises:
        ValueError: If no image can have that ending.
    """
    check_image_path(path)
    with whole_file(path) as part:
        if not cv2.imwrite(str(part), np.ascontiguousarray(image[..., ::-1])):
            raise OSError(f'{path} cannot be written')


def check_image_path(path: Union[str, PathLike[str]]) -> None:
    """Checks that an image can be written to a file of that name.

    Raises:
        ValueError: If no image can have that ending.
    """
    if not cv2.haveImageWriter(str(path)):
        raise ValueError(
            f'the ending of the picture must be one of an image, such as .png or .jpg, '
            f'got {Path(path).name}'
        )


def check_codec(path: Union[str, PathLike[str]], codec: Optional[str] = None) -> str:
    """Returns the codec to write a video with.

    Args:
        path (str or Path): The file.
        codec (str, optional): Its four characters. Defaults to None, one that goes with
            the ending of the file.

    Raises:
        ValueError: If no video can have that ending, or the codec has not four
            characters.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CODECS:
        raise ValueError(
            f'the ending of the video must be one of {", ".join(CODECS)}, '
            f'got {Path(path).name}'
        )
    if codec is None:
        return CODECS[suffix]
    if len(codec) != 4 or not codec.isascii():
        raise ValueError(f'codec must be four characters or None, got {codec!r}')
    return codec


@contextmanager
def video_writer(
    path: Union[str, PathLike[str]],
    size: tuple[int, int],
    fps: float,
    codec: Optional[str] = None,
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a video. The file appears whole, at the end of the context.

    Frames of another size than that of the video are resized. Codecs want an even
    height and width, so one row or column may be missing in the file.

    Args:
        path (str or Path): The file.
        size (tuple[int, int]): Height and width of the video.
        fps (float): Frames per second.
        codec (str, optional): Its four characters. Defaults to None, one that goes with
            the ending of the file.

    Yields:
        Callable: Appends a frame: an RGB image, uint8, ``(H, W, 3)``.

    Raises:
        ValueError: If an argument is out of its range, or the codec cannot write the
            file.
        OSError: If not all frames can be read back at the end.
    """
    check_number('fps', fps, above=0)
    codec = check_codec(path, codec)
    height, width = size
    count = 0
    with whole_file(path) as part:
        writer = cv2.VideoWriter(
            str(part), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size[::-1]
        )
        if not writer.isOpened():
            raise ValueError(
                f'codec must be one that can write {path} at {height}x{width}, such as '
                f'{check_codec(path)}, got {codec}'
            )

        def write(frame: np.ndarray) -> None:
            nonlocal count
            if frame.shape[:2] != size:
                frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
            count += 1

        try:
            yield write
        finally:
            writer.release()
        # OpenCV does not say so when the disk is full.
        written = _count_frames(part)
        if written != count:
            raise OSError(f'{path} has {written} of {count} frames, is the disk full?')


def _count_frames(path: Path) -> int:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
