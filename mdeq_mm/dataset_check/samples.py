"""What is wrong with the samples of a data set."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset


def abbreviate(values: Iterable[Any], limit: int = 10) -> str:
    """Lists values; of many values it lists the first ones and their number."""
    texts = [str(value) for value in values]
    more = [f'… ({len(texts)} in all)'] if len(texts) > limit else []
    return ', '.join(texts[:limit] + more)


def one_line(error: Exception) -> str:
    """Describes an exception in a line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


def digest(path: Optional[str], image: Optional[np.ndarray]) -> Optional[bytes]:
    """Returns a hash of an image as it is stored, in a file or in memory."""
    if isinstance(path, str) and Path(path).is_file():
        data = Path(path).read_bytes()
    elif isinstance(image, np.ndarray):
        data = np.ascontiguousarray(image).tobytes()
    else:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


class PipelineError(Exception):
    """A transform failed. The message says which one and why."""


@dataclass
class SampleFindings:
    """What was found in one sample.

    Attributes:
        where (str): Its index, and its files if it has some.
        errors (list[str]): What is wrong.
        warnings (list[str]): What is suspicious.
        counts (np.ndarray, optional): Number of pixels, or of labels, per class.
        digest (bytes, optional): Hash of the image as it is stored.
    """

    where: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: Optional[np.ndarray] = None
    digest: Optional[bytes] = None


class CheckedDataset(Dataset):
    """Returns the findings about each sample of a data set, instead of the sample.

    Args:
        dataset (BaseDataset): The data set.
        name (str): How reports name it.
        masks (bool): Whether its labels are masks.
        needs_labels (bool): Whether a sample without a label is an error.
        ignore_index (int): Value of ignored pixels. Defaults to 255.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        name: str,
        masks: bool,
        needs_labels: bool,
        ignore_index: int = 255,
    ) -> None:
        self.dataset = dataset
        self.name = name
        self.masks = masks
        self.needs_labels = needs_labels
        self.ignore_index = ignore_index
        self.n_classes = len(dataset.metainfo.get('classes') or ())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SampleFindings:
        info = self.dataset.get_data_info(index)
        paths = [info.get(key) for key in ('img_path', 'seg_map_path')]
        files = ', '.join(str(path) for path in paths if path)
        found = SampleFindings(
            f'{self.name} {index}' + (f' ({files})' if files else '')
        )
        # Read before the pipeline runs, which may change the dict it is given.
        img_path, mask_path = paths
        image, label = info.get('img'), info.get('gt_label')
        try:
            mask, size = self._open(index, info)
            found.digest = digest(img_path, image)
            if self.masks and mask is not None:
                self._check_mask(found, mask, size, mask_path)
            elif not self.masks and label is not None:
                self._count(found, np.atleast_1d(label), 'labels')
            elif self.needs_labels:
                found.errors.append('no annotation')
        except PipelineError as error:
            found.errors.append(str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
            found.errors.append(one_line(error))
        return found

    def _open(
        self, index: int, info: dict
    ) -> tuple[Optional[np.ndarray], Optional[tuple[int, ...]]]:
        """Runs the pipeline; returns the mask as loaded and the size of its image.

        It calls the transforms one by one, for two reasons: ``dataset[index]`` would
        take another sample where they return nothing, and the mask is wanted before
        later transforms augment it.
        """
        random.seed(index)
        np.random.seed(index)
        torch.manual_seed(index)
        mask = size = None
        for transform in self.dataset.pipeline.transforms:
            name = type(transform).__name__
            try:
                info = transform(info)
            except Exception as error:
                raise PipelineError(f'{name} failed: {one_line(error)}') from error
            if info is None:
                raise PipelineError(f'{name} returned nothing')
            if mask is None and 'gt_seg_map' in info:
                mask, size = info['gt_seg_map'].copy(), info.get('ori_shape')
        return mask, size

    def _check_mask(
        self,
        found: SampleFindings,
        mask: np.ndarray,
        size: Optional[tuple[int, ...]],
        path: Optional[str],
    ) -> None:
        if mask.ndim != 2:
            found.errors.append(f'mask of shape {mask.shape}, must have one channel')
            return
        if size is not None and mask.shape != tuple(size[:2]):
            found.errors.append(
                f'mask of {mask.shape[0]}x{mask.shape[1]}, image of {size[0]}x{size[1]}'
            )
        if isinstance(path, str) and Path(path).is_file():
            with suppress(UnidentifiedImageError), Image.open(path) as picture:
                if picture.mode[0] in 'IF':
                    found.errors.append(
                        f'mask of mode {picture.mode}, must have 8 bits per pixel'
                    )
        kept = mask[mask != self.ignore_index]
        self._count(found, kept, 'pixels')
        if not kept.size:
            found.warnings.append('every pixel of the mask is ignored')

    def _count(self, found: SampleFindings, labels: np.ndarray, unit: str) -> None:
        if not self.n_classes:
            return
        inside = (labels >= 0) & (labels < self.n_classes)
        if not inside.all():
            values = np.unique(labels[~inside])
            found.errors.append(
                f'{(~inside).sum()} {unit} outside of the {self.n_classes} classes, '
                f'with the values {abbreviate(values)}'
            )
        found.counts = np.bincount(labels[inside], minlength=self.n_classes)
