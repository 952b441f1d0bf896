"""What is wrong with the samples of a data set."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from .orientation import UPRIGHT, loaded_orientation, stored_orientation


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


@dataclass(frozen=True)
class LoadedMask:
    """A mask before it is augmented, and how its image was loaded.

    Attributes:
        labels (np.ndarray): The mask.
        size (tuple[int], optional): Height and width of the image.
        turned (int): EXIF orientation by which the image was turned, 1 if by none.
    """

    labels: np.ndarray
    size: Optional[tuple[int, ...]]
    turned: int


class CheckedDataset(Dataset):
    """Returns the findings about each sample of a data set, instead of the sample.

    Args:
        dataset (BaseDataset): The data set.
        name (str): How reports name it.
        masks (bool): Whether its labels are masks.
        needs_labels (bool): Whether a sample without a label is an error.
        ignore_index (int): Value of ignored pixels. Defaults to 255.
        n_outputs (Mapping[str, int], optional): Of a data set with several tasks: the
            number of classes of each task. Defaults to None, not known.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        name: str,
        masks: bool,
        needs_labels: bool,
        ignore_index: int = 255,
        n_outputs: Optional[Mapping[str, int]] = None,
    ) -> None:
        self.dataset = dataset
        self.name = name
        self.masks = masks
        self.needs_labels = needs_labels
        self.ignore_index = ignore_index
        self.n_classes = len(dataset.metainfo.get('classes') or ())
        self.tasks = tuple(dataset.metainfo.get('tasks') or ())
        self.n_outputs = n_outputs or {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SampleFindings:
        info = self._info(index)
        paths = [info.get(key) for key in ('img_path', 'seg_map_path')]
        files = ', '.join(str(path) for path in paths if path)
        found = SampleFindings(
            f'{self.name} {index}' + (f' ({files})' if files else '')
        )
        # Read before the pipeline runs, which may change the dict it is given.
        img_path, mask_path = paths
        image, label = info.get('img'), info.get('gt_label')
        try:
            mask = self._open(index, info)
            found.digest = digest(img_path, image)
            if self.masks and mask is not None:
                self._check_mask(found, mask, img_path, mask_path)
            elif self.tasks and label:
                self._check_tasks(found, label)
            elif not (self.masks or self.tasks) and label is not None:
                self._count(found, _as_labels(label), 'labels')
            elif self.needs_labels:
                found.errors.append('no annotation')
        except PipelineError as error:
            found.errors.append(str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
            found.errors.append(one_line(error))
        return found

    def _info(self, index: int) -> dict:
        """Returns what the pipeline is given, as a dict of its own."""
        if isinstance(self.dataset, BaseDataset):
            return self.dataset.get_data_info(index)
        return deepcopy(self.dataset.data_list[index])

    def _open(self, index: int, info: dict) -> Optional[LoadedMask]:
        """Runs the pipeline; returns the mask as it was loaded.

        It calls the transforms one by one, for two reasons: ``dataset[index]`` would
        take another sample where they return nothing, and the mask is wanted before
        later transforms augment it.
        """
        random.seed(index)
        np.random.seed(index)
        torch.manual_seed(index)
        labels = size = None
        turned = UPRIGHT
        for transform in self.dataset.pipeline.transforms:
            name = type(transform).__name__
            before = dict(info)
            try:
                info = transform(info)
            except Exception as error:
                raise PipelineError(f'{name} failed: {one_line(error)}') from error
            if info is None:
                raise PipelineError(f'{name} returned nothing')
            if self.masks and 'img' in info and 'img' not in before:
                turned = loaded_orientation(transform, before, info['img'])
            if size is None:
                size = info.get('ori_shape')
            if labels is None and 'gt_seg_map' in info:
                labels = info['gt_seg_map'].copy()
        return None if labels is None else LoadedMask(labels, size, turned)

    def _check_mask(
        self,
        found: SampleFindings,
        loaded: LoadedMask,
        img_path: Optional[str],
        path: Optional[str],
    ) -> None:
        mask = loaded.labels
        if mask.ndim != 2:
            found.errors.append(f'mask of shape {mask.shape}, must have one channel')
            return
        found.errors += _misfits(
            loaded, stored_orientation(img_path), stored_orientation(path)
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

    def _check_tasks(self, found: SampleFindings, labels: Mapping[str, Any]) -> None:
        """Checks the labels of several tasks. A sample need not have all of them."""
        unknown = [task for task in labels if task not in self.tasks]
        if unknown:
            found.errors.append(f'labels of unknown tasks: {abbreviate(unknown)}')
        for task, label in labels.items():
            if task in self.n_outputs:
                name = f'labels of the task {task}'
                _take_inside(found, _as_labels(label), self.n_outputs[task], name)

    def _count(self, found: SampleFindings, labels: np.ndarray, unit: str) -> None:
        if self.n_classes:
            inside = _take_inside(found, labels, self.n_classes, unit)
            found.counts = np.bincount(inside, minlength=self.n_classes)


def _as_labels(label: Any) -> np.ndarray:
    """Returns the labels of a sample; an image of none of the classes has none."""
    labels = np.atleast_1d(label)
    return labels if labels.size else labels.astype(np.int64)


def _take_inside(
    found: SampleFindings, labels: np.ndarray, n_classes: int, unit: str
) -> np.ndarray:
    """Returns the labels of the classes, and notes an error if there are others."""
    inside = (labels >= 0) & (labels < n_classes)
    if not inside.all():
        values = np.unique(labels[~inside])
        found.errors.append(
            f'{(~inside).sum()} {unit} outside of the {n_classes} classes, '
            f'with the values {abbreviate(values)}'
        )
    return labels[inside]


def _misfits(loaded: LoadedMask, of_image: int, of_mask: int) -> Iterator[str]:
    """Yields why a mask does not lie on its image.

    Args:
        loaded (LoadedMask): Both, as they were loaded. No loader turns masks.
        of_image (int): EXIF orientation that is stored in the image file.
        of_mask (int): The same of the mask file.
    """
    shape, size, turned = loaded.labels.shape, loaded.size, loaded.turned
    if size is not None and shape != tuple(size[:2]):
        how = f' as EXIF orientation {turned} turns it' if turned != UPRIGHT else ''
        yield f'mask of {shape[0]}x{shape[1]}, image of {size[0]}x{size[1]}{how}'
    elif of_mask not in (UPRIGHT, of_image):
        yield f'mask with EXIF orientation {of_mask}, by which it is not turned'
    # A quarter turn of an image that is no square fits masks of upright images alone.
    elif turned in range(2, 5) or (turned != UPRIGHT and shape[0] == shape[1]):
        yield (
            f'image turned by its EXIF orientation {turned} when it is loaded, but not '
            'its mask: store both upright, or load with color_ignore_orientation'
        )
