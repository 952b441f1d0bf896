"""Opens every sample of a config's data sets and reports what is wrong, and where.

The data sets are built as the runner builds them, and every sample goes through its own
pipeline; random augmentation is the same in every run. Of wrappers the data sets inside
are checked, each once.

Errors are what stops a run or spoils its labels: samples that do not open, masks of
another size than the image, labels outside of the classes, missing annotations, empty
data sets, classes that differ from the other splits or, in number, from the model.
Warnings are what may be meant: masks that are ignored altogether, classes that never
occur, images of val or test that are in train too, byte for byte.

Nothing is written, and nothing downloaded. The exit code is 1 if there are errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Optional

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from mdeq_mm.utils.dataset_check import (
    CheckedDataset,
    SampleFindings,
    abbreviate,
    build_datasets,
    one_line,
)
from mdeq_mm.utils.launch import add_cfg_options, load_config

SPLITS = ('train', 'val', 'test')
HEADS = ('decode_head', 'auxiliary_head', 'head')
MAX_DUPLICATES = 10
MAX_NAME = 32
MAX_ROWS = 40


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=SPLITS,
        help='which to check; default: those the config has',
    )
    parser.add_argument(
        '--num-workers',
        type=int,
        default=0,
        help='processes that open samples; default: %(default)s, none but this one',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.num_workers < 0:
        parser.error(f'--num-workers must not be negative, got {args.num_workers}')
    return args


class Report:
    """Prints findings and counts them."""

    def __init__(self) -> None:
        self.n_errors = 0
        self.n_warnings = 0

    def error(self, where: str, what: str) -> None:
        self.n_errors += 1
        print(f'error: {where}: {what}')

    def warning(self, where: str, what: str) -> None:
        self.n_warnings += 1
        print(f'warning: {where}: {what}')


@dataclass
class Split:
    """What was found in a split.

    Attributes:
        classes (tuple[str]): Names of the classes.
        counts (np.ndarray, optional): Pixels, or labels, of each class; None where no
            sample had labels.
        samples (np.ndarray, optional): Samples in which each class occurs.
        images (dict[bytes, str]): Hash of each image, and where it is.
    """

    classes: tuple[str, ...] = ()
    counts: Optional[np.ndarray] = None
    samples: Optional[np.ndarray] = None
    images: dict[bytes, str] = field(default_factory=dict)

    def add(self, found: SampleFindings) -> None:
        """Adds a sample; its labels only if they are of the same classes."""
        if found.digest is not None:
            self.images.setdefault(found.digest, found.where)
        if found.counts is None or len(found.counts) != len(self.classes):
            return
        if self.counts is None:
            self.counts = np.zeros_like(found.counts)
            self.samples = np.zeros_like(found.counts)
        self.counts += found.counts
        self.samples += found.counts > 0


def select_splits(cfg: Config, wanted: Optional[Sequence[str]]) -> list[str]:
    """Returns the splits to check.

    Raises:
        ValueError: If the config lacks a wanted one, or has none at all.
    """
    present = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    missing = set(wanted or ()) - set(present)
    if missing or not present:
        raise ValueError(
            f'--splits must be among those of {cfg.filename}, '
            f'{", ".join(present) or "which has none"}, '
            f'got {", ".join(wanted or SPLITS)}'
        )
    return [split for split in present if wanted is None or split in wanted]


def head_settings(cfg: Config, key: str) -> dict[str, int]:
    """Returns a setting of the model's heads, by the name of the head."""
    settings = {}
    for name in HEADS:
        heads = cfg.get('model', {}).get(name) or ()
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            if head.get(key) is not None:
                settings[name] = head[key]
    return settings


def check_classes(
    cfg: Config, classes: tuple[str, ...], expected: tuple[str, ...]
) -> Iterator[str]:
    """Yields what is wrong with the classes of a data set."""
    if expected and classes != expected:
        differing = sorted({*classes} ^ {*expected})
        yield (
            f'its {len(classes)} classes are not the {len(expected)} of the data set '
            f'before: {abbreviate(differing) or "their order"}'
        )
    for head, n_outputs in head_settings(cfg, 'num_classes').items():
        if n_outputs != len(classes):
            yield f'{len(classes)} classes, but num_classes={n_outputs} in model.{head}'


def check_split(
    cfg: Config,
    name: str,
    expected: tuple[str, ...],
    num_workers: int,
    report: Report,
) -> Split:
    """Checks the samples of a split and reports what it finds.

    Args:
        cfg (Config): The config.
        name (str): The split.
        expected (tuple[str]): Classes of the splits before, or ().
        num_workers (int): Processes to open samples in.
        report (Report): Where errors and warnings go.

    Returns:
        Split: Counts, and the images for the search for duplicates.
    """
    split = Split(classes=expected)
    try:
        datasets = build_datasets(cfg[f'{name}_dataloader'].dataset)
    except Exception as error:
        report.error(name, f'cannot be built: {one_line(error)}')
        return split
    for number, dataset in enumerate(datasets):
        part = name if len(datasets) == 1 else f'{name}[{number}]'
        classes = tuple(dataset.metainfo.get('classes') or ())
        if classes:
            for problem in check_classes(cfg, classes, split.classes):
                report.error(part, problem)
        else:
            report.warning(part, 'no classes in its metainfo, labels are not checked')
        split.classes = split.classes or classes
        checked = CheckedDataset(
            dataset,
            part,
            masks=cfg.default_scope == 'mmseg',
            needs_labels=bool(classes) and name != 'test',
            ignore_index=head_settings(cfg, 'ignore_index').get('decode_head', 255),
        )
        loader = DataLoader(checked, batch_size=None, num_workers=num_workers)
        console = Console(stderr=True)
        findings = []
        for found in track(loader, part, len(checked), console=console):
            split.add(found)
            if found.errors or found.warnings:
                findings.append(found)
        # The bar is gone: nothing breaks into it.
        for found in findings:
            for what in found.errors:
                report.error(found.where, what)
            for what in found.warnings:
                report.warning(found.where, what)
    return split


def check_duplicates(splits: dict[str, Split], report: Report) -> None:
    """Reports images of val and test that are in train too."""
    train = splits['train'].images if 'train' in splits else {}
    for name, split in splits.items():
        if name == 'train':
            continue
        shared = [
            (where, train[key]) for key, where in split.images.items() if key in train
        ]
        for where, original in shared[:MAX_DUPLICATES]:
            report.warning(where, f'the same image as {original}')
        if len(shared) > MAX_DUPLICATES:
            report.warning(
                name, f'{len(shared) - MAX_DUPLICATES} more images that are in train'
            )


def check_counts(splits: dict[str, Split], unit: str, report: Report) -> None:
    """Prints how often each class occurs, and reports those that never do."""
    counted = {n: split for n, split in splits.items() if split.counts is not None}
    if not counted:
        return
    for name, split in counted.items():
        never = [c for c, count in zip(split.classes, split.counts) if not count]
        if never:
            report.warning(name, f'classes that never occur: {abbreviate(never)}')
    first = next(iter(counted.values()))
    rows = range(len(first.classes))
    if len(rows) > MAX_ROWS:
        rows = np.argsort(first.counts, kind='stable')[:MAX_ROWS]
        print(f'\nthe {MAX_ROWS} rarest of {len(first.classes)} classes')
    names = {row: str(first.classes[row])[:MAX_NAME] for row in rows}
    width = max(map(len, names.values()))
    print()
    print(' ' * width, *(f'{name:>16}{"":>10}' for name in counted))
    print(' ' * width, *(f'{unit:>16}{"images":>10}' for _ in counted))
    for row in rows:
        print(
            f'{names[row]:{width}}',
            *(f'{s.counts[row]:16,}{s.samples[row]:10,}' for s in counted.values()),
        )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Checks the data sets of a config.

    Returns:
        int: The exit code, 1 if there are errors.
    """
    args = parse_args(argv)
    cfg = load_config(args)
    init_default_scope(cfg.default_scope)
    import_module(f'{cfg.default_scope}.datasets')
    report = Report()
    splits: dict[str, Split] = {}
    classes: tuple[str, ...] = ()
    for name in select_splits(cfg, args.splits):
        dataset = cfg[f'{name}_dataloader'].dataset
        same = [s for s in splits if cfg[f'{s}_dataloader'].dataset == dataset]
        if same:
            print(f'{name} is the data set of {same[0]}')
            continue
        splits[name] = check_split(cfg, name, classes, args.num_workers, report)
        classes = splits[name].classes
    check_duplicates(splits, report)
    check_counts(splits, 'pixels' if cfg.default_scope == 'mmseg' else 'labels', report)
    print(f'\n{report.n_errors} errors, {report.n_warnings} warnings')
    return 1 if report.n_errors else 0


if __name__ == '__main__':
    sys.exit(main())
