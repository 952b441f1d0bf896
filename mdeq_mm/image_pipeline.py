"""Single images on the way to a model, as the pipeline of testing prepares them."""

from __future__ import annotations

from os import PathLike
from typing import Any, Union

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate

from .apis import build_test_dataset

Image = Union[str, PathLike[str], np.ndarray]


class ImagePipeline:
    """The pipeline that a config tests with, for images outside of its data set.

    Transforms that load something else than the image are left out. No file of the data
    set is read.

    Args:
        cfg (Config): The config.

    Attributes:
        metainfo (dict): What the data set says of its classes.

    Raises:
        ValueError: If the config has no data set for testing with a pipeline.
    """

    def __init__(self, cfg: Config) -> None:
        dataset = build_test_dataset(cfg)
        self.metainfo: dict[str, Any] = dataset.metainfo
        transforms = dataset.pipeline.transforms
        loading = [t for t in transforms if type(t).__name__.startswith('Load')]
        self._names = [type(t).__name__ for t in transforms]
        self._load = [t for t in loading if 'Image' in type(t).__name__]
        self._prepare = Compose([t for t in transforms if t not in loading])

    def read(self, path: Union[str, PathLike[str]]) -> np.ndarray:
        """Reads an image file.

        Args:
            path (str or Path): The file.

        Returns:
            np.ndarray: The image as the pipeline loads it: BGR, ``(H, W, 3)``, uint8
            if nothing else is configured.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be read as an image, or the pipeline loads
                none because its data set has the images in memory.
        """
        if not self._load:
            raise ValueError(
                'the pipeline in test_dataloader.dataset must load images, as '
                'LoadImageFromFile does, in the order of channels that the model is '
                f'trained with, got {self._names}'
            )
        data: dict[str, Any] = dict(img_path=str(path))
        try:
            for load in self._load:
                data = load(data)
        except FileNotFoundError:
            raise
        except Exception as error:  # each backend of mmcv has errors of its own
            raise ValueError(f'{path} cannot be read as an image') from error
        return data['img']

    def __call__(self, image: Image) -> dict[str, Any]:
        """Returns a batch of one image for ``model.test_step``.

        Args:
            image (str, Path or np.ndarray): The file of the image, or the image itself:
                BGR, ``(H, W, 3)``.
        """
        path = None
        if not isinstance(image, np.ndarray):
            path, image = str(image), self.read(image)
        size = image.shape[:2]
        data = dict(img=image, img_shape=size, ori_shape=size, img_path=path)
        return pseudo_collate([self._prepare(data)])
