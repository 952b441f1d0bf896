"""What is wrong with the splits of a config's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

from ..apis import toolbox
from .datasets import build_datasets
from .samples import CheckedDataset, SampleFindings, abbreviate, one_line

SPLITS = ('train', 'val', 'test')
HEADS = ('decode_head', 'auxiliary_head', 'head')
MAX_DUPLICATES = 10

# Called with what to go through, the name and the number of samples.
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or suspicious.

    Attributes:
        severity (str): ``'error'`` or ``'warning'``.
        where (str): The split or the sample.
        what (str): What was found there.
    """

    severity: str
    where: str
    what: str

    def __str__(self) -> str:
        return f'{self.severity}: {self.where}: {self.what}'


@dataclass
class Split:
    """What was found in a split.

    Attributes:
        name (str): The split.
        same_as (str, optional): The earlier split with the same data set. Such a split
            is not checked again. Defaults to None.
        findings (list[Finding]): What is wrong or suspicious.
        classes (tuple[str]): Names of the classes.
        counts (np.ndarray, optional): Number of pixels, or of labels, per class. None
            where no sample had labels.
        samples (np.ndarray, optional): Number of samples per class that have it.
        images (dict[bytes, str]): Hash of each image, and where the image is.
    """

    name: str
    same_as: Optional[str] = None
    findings: list[Finding] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    counts: Optional[np.ndarray] = None
    samples: Optional[np.ndarray] = None
    images: dict[bytes, str] = field(default_factory=dict)

    def error(self, where: str, what: str) -> None:
        """Notes an error."""
        self.findings.append(Finding('error', where, what))

    def warning(self, where: str, what: str) -> None:
        """Notes a warning."""
        self.findings.append(Finding('warning', where, what))

    def add(self, found: SampleFindings) -> None:
        """Adds a sample; its labels only if they are of the same classes."""
        for what in found.errors:
            self.error(found.where, what)
        for what in found.warnings:
            self.warning(found.where, what)
        if found.digest is not None:
            self.images.setdefault(found.digest, found.where)
        if found.counts is None or len(found.counts) != len(self.classes):
            return
        if self.counts is None or self.samples is None:
            self.counts = np.zeros_like(found.counts)
            self.samples = np.zeros_like(found.counts)
        self.counts += found.counts
        self.samples += found.counts > 0


def select_splits(cfg: Config, wanted: Optional[Sequence[str]] = None) -> list[str]:
    """Returns the splits to check.

    Args:
        cfg (Config): The config.
        wanted (Sequence[str], optional): Names of splits. Defaults to None, those that
            the config has.

    Raises:
        ValueError: If the config lacks a wanted split, or has none at all.
    """
    present = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    missing = set(wanted or ()) - set(present)
    if missing or not present:
        raise ValueError(
            f'the splits must be among those of {cfg.filename}, '
            f'{", ".join(present) or "which has none"}, '
            f'got {", ".join(wanted or SPLITS)}'
        )
    for split in present:
        loaders = cfg[f'{split}_dataloader']
        if 'dataset' not in loaders:
            raise ValueError(
                f'{cfg.filename} must be of one task, {split}_dataloader is of '
                f'{", ".join(loaders)}: check the configs of the tasks'
            )
    return [split for split in present if wanted is None or split in wanted]


def check_splits(
    cfg: Config,
    wanted: Optional[Sequence[str]] = None,
    num_workers: int = 0,
    track: Track = lambda samples, name, number: samples,
) -> Iterator[Split]:
    """Opens every sample of the splits of a config.

    Args:
        cfg (Config): The config.
        wanted (Sequence[str], optional): Names of splits. Defaults to None, those that
            the config has.
        num_workers (int): Processes that open samples. Defaults to 0, none but this.
        track (Callable): Given the samples of a data set, its name and their number, it
            returns the samples, and may show progress. Defaults to showing none.

    Yields:
        Split: What was found in a split, in the order train, val, test.

    Raises:
        ValueError: If the config lacks a wanted split, or has none at all.
    """
    classes: tuple[str, ...] = ()
    checked: list[str] = []
    for name in select_splits(cfg, wanted):
        dataset = cfg[f'{name}_dataloader'].dataset
        same = [s for s in checked if cfg[f'{s}_dataloader'].dataset == dataset]
        if same:
            yield Split(name, same_as=same[0])
            continue
        split = Split(name, classes=classes)
        try:
            with toolbox(cfg):
                datasets = build_datasets(dataset)
        except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
            split.error(name, f'cannot be built: {one_line(error)}')
            datasets = []
        for number, part in enumerate(datasets):
            label = name if len(datasets) == 1 else f'{name}[{number}]'
            _check_dataset(split, cfg, part, label, num_workers, track)
        checked.append(name)
        classes = split.classes
        yield split


def find_duplicates(splits: Sequence[Split]) -> list[Finding]:
    """Returns warnings about images of val and test that are in train too."""
    found = []
    train = {h: w for s in splits if s.name == 'train' for h, w in s.images.items()}
    for split in splits:
        if split.name == 'train':
            continue
        shared = [(w, train[key]) for key, w in split.images.items() if key in train]
        for where, original in shared[:MAX_DUPLICATES]:
            found.append(Finding('warning', where, f'the same image as {original}'))
        if len(shared) > MAX_DUPLICATES:
            more = f'{len(shared) - MAX_DUPLICATES} more images that are in train'
            found.append(Finding('warning', split.name, more))
    return found


def find_missing_classes(splits: Sequence[Split]) -> list[Finding]:
    """Returns warnings about classes that never occur in a split."""
    found = []
    for split in splits:
        if split.counts is None:
            continue
        never = [c for c, count in zip(split.classes, split.counts) if not count]
        if never:
            what = f'classes that never occur: {abbreviate(never)}'
            found.append(Finding('warning', split.name, what))
    return found


def _check_dataset(
    split: Split,
    cfg: Config,
    dataset: BaseDataset,
    name: str,
    num_workers: int,
    track: Track,
) -> None:
    """Checks one data set of a split and adds to the split what is found."""
    classes = tuple(dataset.metainfo.get('classes') or ())
    tasks = tuple(dataset.metainfo.get('tasks') or ())
    n_outputs = _task_settings(cfg) if tasks else {}
    missing = [task for task in n_outputs if task not in tasks]
    if missing:
        split.error(name, f'no labels for heads of the model: {abbreviate(missing)}')
    knows_labels = cfg.default_scope in ('mmseg', 'mmpretrain')
    if classes:
        for problem in _differences(cfg, classes, split.classes):
            split.error(name, problem)
    elif not tasks:
        split.warning(name, 'no classes in its metainfo, labels are not checked')
    if not knows_labels:
        split.warning(name, f'labels of {cfg.default_scope} are not checked')
    split.classes = split.classes or classes
    checked = CheckedDataset(
        dataset,
        name,
        masks=cfg.default_scope == 'mmseg',
        needs_labels=knows_labels and bool(classes or tasks) and split.name != 'test',
        ignore_index=_head_settings(cfg, 'ignore_index').get('decode_head', 255),
        n_outputs=n_outputs,
    )
    loader = DataLoader(checked, batch_size=None, num_workers=num_workers)
    for found in track(loader, name, len(checked)):
        split.add(found)


def _differences(
    cfg: Config, classes: tuple[str, ...], expected: tuple[str, ...]
) -> Iterator[str]:
    """Yields what is wrong with the classes of a data set."""
    if expected and classes != expected:
        differing = sorted({*classes} ^ {*expected})
        yield (
            f'its {len(classes)} classes are not the {len(expected)} of the data set '
            f'before: {abbreviate(differing) or "their order"}'
        )
    for head, n_outputs in _head_settings(cfg, 'num_classes').items():
        if n_outputs != len(classes):
            yield f'{len(classes)} classes, but num_classes={n_outputs} in model.{head}'


def _head_settings(cfg: Config, key: str) -> dict[str, int]:
    """Returns a setting of the model's heads, by the name of the head."""
    settings = {}
    for name in HEADS:
        heads = cfg.get('model', {}).get(name) or ()
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            if head.get(key) is not None:
                settings[name] = head[key]
    return settings


def _task_settings(cfg: Config) -> dict[str, int]:
    """Returns the number of classes of each task of a model, as far as it is told."""
    heads = (cfg.get('model', {}).get('head') or {}).get('task_heads') or {}
    return {
        task: head.num_classes
        for task, head in heads.items()
        if head.get('num_classes') is not None
    }
