"""The data sets behind a config of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from copy import deepcopy

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

# What the data sets of the toolboxes have that are no BaseDataset.
_LIKE_ONE = ('metainfo', 'pipeline', 'data_list')


def build_datasets(cfg: ConfigDict) -> list[BaseDataset]:
    """Builds a data set. Of one that wraps others it returns those inside.

    It lets none of them download anything.

    Args:
        cfg (ConfigDict): Config of the data set, as in a data loader.

    Returns:
        list[BaseDataset]: The data sets, each with its pipeline.

    Raises:
        ValueError: If one of them has no samples.
        TypeError: If one of them is neither a ``BaseDataset`` nor has what the
            ``MultiTaskDataset`` of MMPretrain has.
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
        # mmengine says so when it fails to serialise an empty list.
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
    if isinstance(dataset, BaseDataset) or all(
        hasattr(dataset, name) for name in _LIKE_ONE
    ):
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
