"""Cuts a checkpoint of a MultiTaskModel into checkpoints of its tasks.

For each task it writes TASK.pth, the weights of the stock model with the backbone that
all tasks share, and TASK.py, its config. Their predictions are those of the whole
model. The toolbox of the task, its tools and inferencers included, needs nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import torch

from mdeq_mm import __version__
from mdeq_mm.apis import load_config, load_model
from mdeq_mm.checkpoints import load_checkpoint
from mdeq_mm.cli import add_cfg_options, add_checkpoint
from mdeq_mm.engine import task_config
from mdeq_mm.models import MultiTaskModel


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_checkpoint(parser)
    parser.add_argument(
        '--out-dir', type=Path, required=True, help='directory to write to'
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the checkpoints and configs, all of them or none."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    model = load_model(cfg, args.checkpoint, 'cpu', allow_partial=args.allow_partial)
    if not isinstance(model, MultiTaskModel):
        raise ValueError(
            f'{args.config} must be of a MultiTaskModel, got {type(model).__name__}'
        )
    meta = load_checkpoint(args.checkpoint).get('meta', {})
    args.out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out_dir, prefix='.unfinished') as name:
        for task in model.tasks:
            about = dict(mdeq_mm_version=__version__, task=task)
            dataset_meta = meta.get('dataset_meta', {}).get(task)
            if dataset_meta:
                about['dataset_meta'] = dataset_meta
            state_dict = model.extract(task).state_dict()
            torch.save(
                dict(meta=about, state_dict=state_dict), Path(name, f'{task}.pth')
            )
            task_config(cfg, task).dump(Path(name, f'{task}.py'))
        for path in sorted(Path(name).iterdir()):
            print(f'written: {path.replace(args.out_dir / path.name)}')


if __name__ == '__main__':
    main()
