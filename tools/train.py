"""Trains a model of any installed toolbox of OpenMMLab from a config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from launch import (
    add_common_arguments,
    build_runner,
    check_start,
    choose_start,
    ended_process_group,
    load_runner_config,
    named_rank,
)

from mdeq_mm.checkpoints import safe_loading


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a value from the newest whole '
        'one of the work directory',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size',
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Trains."""
    args = parse_args(argv)
    cfg = load_runner_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}'
            )
        cfg.auto_scale_lr.enable = True
    with safe_loading(), named_rank(), ended_process_group():
        start = choose_start(cfg, args.resume)
        runner = build_runner(cfg)
        if start is not None:
            check_start(runner, start)
        runner.train()


if __name__ == '__main__':
    main()
