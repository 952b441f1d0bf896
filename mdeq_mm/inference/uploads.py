"""What is taken of the image files that strangers send."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Union

from PIL import Image

from ..deq.checks import check_int

FORMATS = ('PNG', 'JPEG', 'WebP', 'BMP')


@dataclass(frozen=True)
class UploadLimits:
    """How large an image file may be that is sent by somebody else.

    Args:
        max_bytes (int): Bytes of the file. Defaults to 10,000,000.
        max_pixels (int): Pixels of the image, height times width. Defaults to
            4,000,000.
        max_aspect (int): How many times longer one side of the image may be than the
            other. Pipelines and pictures scale the shorter side up to a fixed length,
            and the longer one with it. Defaults to 20.

    Raises:
        ValueError: If a limit is not a positive integer.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 4_000_000
    max_aspect: int = 20

    def __post_init__(self) -> None:
        check_int('max_bytes', self.max_bytes, 1)
        check_int('max_pixels', self.max_pixels, 1)
        check_int('max_aspect', self.max_aspect, 1)

    def check(self, path: Union[str, PathLike[str]]) -> None:
        """Checks a file by its size and by its header, before any pixel is decoded.

        Args:
            path (str or Path): The file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file or the image is too large, the image is a sliver, or
                the file is no image in one of :data:`FORMATS`.
        """
        n_bytes = Path(path).stat().st_size
        if n_bytes > self.max_bytes:
            raise ValueError(
                f'the file must have at most {self.max_bytes:,} bytes, got {n_bytes:,}'
            )
        width, height = self._size_of(path)
        if width * height > self.max_pixels:
            raise ValueError(f'{self._most_pixels}, got {width} x {height}')
        short, long = sorted((width, height))
        if long > self.max_aspect * short:
            raise ValueError(
                f'a side of the image must be at most {self.max_aspect} times as long '
                f'as the other, got {long} and {short} pixels'
            )

    def _size_of(self, path: Union[str, PathLike[str]]) -> tuple[int, int]:
        """Returns width and height that the header of an image file names."""
        try:
            with Image.open(path, formats=FORMATS) as image:
                return image.size
        except Image.DecompressionBombError as error:
            raise ValueError(f'{self._most_pixels}, got far more') from error
        except Exception as error:  # each format has errors of its own
            raise ValueError(
                f'the file must be an image in the format of {", ".join(FORMATS)}, got '
                'something else'
            ) from error

    @property
    def _most_pixels(self) -> str:
        return f'the image must have at most {self.max_pixels:,} pixels'
