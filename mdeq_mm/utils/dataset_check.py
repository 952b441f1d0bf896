"""What is wrong with the samples of a data set."""

from __future__ import annotations

import hashlib
import inspect
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset


def abbreviate(values: Iterable, limit: int = 10) -> str:
    """Lists values, the first ones if there are many."""
    values = [str(value) for value in values]
    more = [f'… ({len(values)} in all)'] if len(values) > limit else []
    return ', '.join(values[:limit] + more)


def one_line(error: Exception) -> str:
    """Describes an exception in a line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


def digest(path: Optional[str], image: Optional[np.ndarray]) -> Optional[bytes]:
    """Returns a hash of an image as it is stored, in a file or in memory."""
    if isinstance(path, str) and os.path.isfile(path):
        data = Path(path).read_bytes()
    elif isinstance(image, np.ndarray):
        data = np.ascontiguousarray(image).tobytes()
    else:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


class PipelineError(Exception):
    """A transform failed; says which and why."""


@dataclass
class SampleFindings:
    """What was found in one sample.

    Attributes:
        where (str): Its index, and its files if it has some.
        errors (list[str]): What is wrong.
        warnings (list[str]): What is suspicious.
        counts (np.ndarray, optional): Pixels, or labels, of each class.
        digest (bytes, optional): Hash of the image as it is stored.
    """

    where: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: Optional[np.ndarray] = None
    digest: Optional[bytes] = None


class CheckedDataset(Dataset):
    """The findings about the samples of a data set, in the place of the samples.

    Args:
        dataset (BaseDataset): The data set.
        name (str): What reports call it.
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
        # A pipeline may change the dict it is given.
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
        except Exception as error:
            found.errors.append(one_line(error))
        return found

    def _open(
        self, index: int, info: dict
    ) -> tuple[Optional[np.ndarray], Optional[tuple[int, ...]]]:
        """Runs the pipeline; returns the mask as loaded and the size of its image.

        Transforms are called one by one: ``dataset[index]`` would take another sample
        where they return nothing, and later ones augment the mask.
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
                'mask of {}x{}, image of {}x{}'.format(*mask.shape, *size)
            )
        if isinstance(path, str) and os.path.isfile(path):
            with suppress(UnidentifiedImageError), Image.open(path) as picture:
                if picture.mode[0] in 'IF':
                    found.errors.append(
                        f'mask of mode {picture.mode}, must have 8 bits a pixel'
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


def build_datasets(cfg: ConfigDict) -> list[BaseDataset]:
    """Builds a data set; where it wraps others, as in ``RepeatDataset``, those.

    None of them may download anything.

    Args:
        cfg (ConfigDict): Config of the data set, as in a data loader.

    Returns:
        list[BaseDataset]: The data sets, each with its pipeline.

    Raises:
        ValueError: If one of them has no samples.
        TypeError: If one of them is no ``BaseDataset``.
    """
    cfg = deepcopy(cfg)
    leaves = list(_leaf_configs(cfg))
    for leaf in leaves:
        kind = leaf.type
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        if kind is not None and 'download' in inspect.signature(kind).parameters:
            leaf.download = False
    source = '; '.join(
        ', '.join(
            f'{key}={leaf[key]!r}'
            for key in ('data_root', 'data_prefix', 'ann_file', 'img_suffix')
            if leaf.get(key)
        )
        for leaf in leaves
    )
    try:
        dataset = DATASETS.build(cfg)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    except ValueError as error:
        # How mmengine fails to serialise an empty list.
        if not str(error).startswith('need at least one array'):
            raise
        raise ValueError(f'no samples in {source}') from error
    datasets = list(_leaf_datasets(dataset))
    if not all(len(dataset) for dataset in datasets):
        raise ValueError(f'no samples in {source}')
    return datasets


def _leaf_configs(cfg: ConfigDict) -> Iterator[ConfigDict]:
    inner = [cfg['dataset']] if 'dataset' in cfg else cfg.get('datasets', ())
    for child in inner:
        yield from _leaf_configs(child)
    if not inner:
        yield cfg


def _leaf_datasets(dataset: Dataset) -> Iterator[BaseDataset]:
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    if hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    elif hasattr(dataset, 'datasets'):
        inner = dataset.datasets
    else:
        raise TypeError(
            'a data set must be a BaseDataset of mmengine, or wrap some, got '
            f'{type(dataset).__name__}'
        )
    for child in inner:
        yield from _leaf_datasets(child)
