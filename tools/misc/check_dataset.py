"""Opens every sample of a config's data sets and reports what is wrong, and where.

The data sets are built as the runner builds them, and every sample goes through its own
pipeline. Random augmentation is the same in every run. Of data sets that wrap others
those inside are checked, each once.

Errors are what stops a run or spoils its labels: samples that do not open, masks of
another size than the image, photos that are turned by their EXIF orientation while
their masks are not, labels outside of the classes, missing annotations, empty data
sets, classes that differ from those of the other splits or, in number, from the model.
Warnings are what may be meant: masks that are ignored altogether, classes that never
occur, images of val or test that are in train too, byte for byte. Labels are checked
for MMSegmentation and MMPretrain.

Nothing is written, and nothing is downloaded. The exit code is 1 if there are errors.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Optional

import numpy as np
from rich.console import Console
from rich.progress import track

from mdeq_mm.apis import load_config
from mdeq_mm.cli import add_cfg_options, int_of_at_least
from mdeq_mm.dataset_check import (
    SPLITS,
    Finding,
    Split,
    check_splits,
    find_duplicates,
    find_missing_classes,
)

MAX_NAME = 32
MAX_ROWS = 40


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=SPLITS,
        help='splits to check; default: those the config has',
    )
    parser.add_argument(
        '--num-workers',
        type=int_of_at_least(0),
        default=0,
        help='processes that open samples; default: %(default)s, none but this one',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def progress_bar(samples: Iterable, name: str, number: int) -> Iterable:
    """Shows progress on the error stream, so that the report stays clean."""
    return track(samples, name, number, console=Console(stderr=True))


def report(findings: list[Finding]) -> list[Finding]:
    """Prints findings, one per line, and returns them."""
    for finding in findings:
        print(finding)
    return findings


def print_counts(splits: Sequence[Split], unit: str) -> None:
    """Prints how often each class occurs; of many classes the rarest."""
    counted = [split for split in splits if split.counts is not None]
    if not counted:
        return
    first = counted[0]
    rows: Sequence[int] = range(len(first.classes))
    if len(rows) > MAX_ROWS:
        rows = np.argsort(first.counts, kind='stable')[:MAX_ROWS].tolist()
        print(f'\nthe {MAX_ROWS} rarest of {len(first.classes)} classes')
    names = {row: str(first.classes[row])[:MAX_NAME] for row in rows}
    width = max(map(len, names.values()))
    print()
    print(' ' * width, *(f'{split.name:>16}{"":>10}' for split in counted))
    print(' ' * width, *(f'{unit:>16}{"images":>10}' for _ in counted))
    for row in rows:
        print(
            f'{names[row]:{width}}',
            *(f'{s.counts[row]:16,}{s.samples[row]:10,}' for s in counted),
        )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Checks the data sets of a config; returns the exit code."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    splits, findings = [], []
    for split in check_splits(cfg, args.splits, args.num_workers, progress_bar):
        if split.same_as is not None:
            print(f'{split.name} is the data set of {split.same_as}')
            continue
        splits.append(split)
        findings += report(split.findings)
    findings += report(find_duplicates(splits) + find_missing_classes(splits))
    print_counts(splits, 'pixels' if cfg.default_scope == 'mmseg' else 'labels')
    numbers = Counter(finding.severity for finding in findings)
    print(f'\n{numbers["error"]} errors, {numbers["warning"]} warnings')
    return 1 if numbers['error'] else 0


if __name__ == '__main__':
    sys.exit(main())
