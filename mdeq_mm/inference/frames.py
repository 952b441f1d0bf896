"""Where the frames of a video come from: a video file or a folder of images."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Optional, Union

import cv2
import numpy as np

from ..benchmark import read_image
from ..benchmark.video import SUFFIXES
from ..deq.checks import check_int

DEFAULT_FPS = 25.0


class Frames(ABC):
    """Frames that can be read again and again, always from the first one on.

    Attributes:
        fps (float): Frames per second.
        size (tuple[int, int]): Height and width of the first frame.
    """

    fps: float
    size: tuple[int, int]

    @abstractmethod
    def __iter__(self) -> Iterator[np.ndarray]:
        """Reads the frames, BGR, uint8, ``(H, W, 3)``."""


class FrameFolder(Frames):
    """The images of a folder, in the order of their names. They may differ in size.

    Args:
        path (Path): The folder, with ``.jpg``, ``.jpeg`` or ``.png`` images.
        num_frames (int, optional): Number of frames at most. Defaults to None, all.

    Raises:
        ValueError: If there is no image, or the first one cannot be read.
    """

    fps = DEFAULT_FPS

    def __init__(self, path: Path, num_frames: Optional[int] = None) -> None:
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise ValueError(
                f'{path} must hold frames, files with the ending '
                f'{", ".join(SUFFIXES)}, got none'
            )
        self._paths = paths[:num_frames]
        self.size = read_image(paths[0]).shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self._paths:
            yield read_image(path)


class VideoFile(Frames):
    """The frames of a video file.

    Args:
        path (Path): The file, of any format that the FFmpeg of OpenCV reads.
        num_frames (int, optional): Number of frames at most. Defaults to None, all.

    Raises:
        ValueError: If the file is no video, or has no frame that can be read.
    """

    def __init__(self, path: Path, num_frames: Optional[int] = None) -> None:
        self._path, self._num_frames = path, num_frames
        # FFmpeg takes an image or a text for a video of one frame.
        if path.suffix.lower() in (*SUFFIXES, '.txt'):
            raise ValueError(
                f'{path} must be a video or a folder of frames, got a file with the '
                f'ending {path.suffix}'
            )
        capture = self._open()
        try:
            self.size = self._read_first(capture).shape[:2]
            self.fps = capture.get(cv2.CAP_PROP_FPS)
        finally:
            capture.release()
        if not (math.isfinite(self.fps) and self.fps > 0):
            self.fps = DEFAULT_FPS

    def __iter__(self) -> Iterator[np.ndarray]:
        """Reads the frames. It warns if the file promises more than can be read."""
        capture = self._open()
        try:
            promised, count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
            frame = self._read_first(capture)
            while frame is not None and count != self._num_frames:
                yield frame
                count += 1
                frame = capture.read()[1]
        finally:
            capture.release()
        if count < promised and count != self._num_frames:
            warnings.warn(
                f'{self._path} promises {promised} frames, {count} can be read',
                stacklevel=2,
            )

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)

    def _read_first(self, capture: cv2.VideoCapture) -> np.ndarray:
        frame = capture.read()[1] if capture.isOpened() else None
        if frame is None:
            raise ValueError(f'{self._path} cannot be read as a video')
        return frame


def open_frames(
    path: Union[str, PathLike[str]], num_frames: Optional[int] = None
) -> Frames:
    """Opens a video file or a folder of frames.

    Args:
        path (str or Path): The file or the folder.
        num_frames (int, optional): Number of frames at most. Defaults to None, all.

    Returns:
        Frames: The frames. The first one can be read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``num_frames`` is out of its range, or as :class:`FrameFolder`
            and :class:`VideoFile`.
    """
    check_int('num_frames', num_frames, 1, optional=True)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} must be a video or a folder of frames')
    return (FrameFolder if path.is_dir() else VideoFile)(path, num_frames)
