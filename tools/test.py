"""Evaluates a checkpoint of any installed toolbox of OpenMMLab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from launch import (
    add_common_arguments,
    build_runner,
    ended_process_group,
    load_runner_config,
    named_rank,
)
from mmengine.config import Config
from mmengine.evaluator import DumpResults

from mdeq_mm.apis import toolbox_of
from mdeq_mm.checkpoints import TRAINING_PARTS, safe_loading
from mdeq_mm.cli import add_checkpoint
from mdeq_mm.engine import StrictLoadingHook


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_checkpoint(parser)
    parser.add_argument('--out', help='file (.pkl) to write the predictions to')
    parser.add_argument('--show-dir', help='directory to write painted images to')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='augment at test time, with tta_model and tta_pipeline of the config',
    )
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def write_painted_images(cfg: Config, folder: str) -> None:
    """Lets the visualization hook of a toolbox write painted images to a folder.

    Raises:
        ValueError: If it is unknown how the toolbox names the settings of its hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    toolbox = toolbox_of(cfg)
    if hook is None or toolbox not in ('mmseg', 'mmpretrain', 'mmdet'):
        raise ValueError(
            '--show-dir needs the visualization hook of mmseg, mmpretrain or mmdet in '
            f'default_hooks, got {hook} of {toolbox}'
        )
    hook.setdefault('interval', 1)
    if toolbox == 'mmseg':
        hook.draw = True
        cfg.visualizer.save_dir = folder
    elif toolbox == 'mmdet':
        hook.draw = True
        # The hook would look for a relative one below the work directory.
        hook.test_out_dir = str(Path(folder).resolve())
    else:
        hook.enable = True
        hook.out_dir = folder


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Evaluates."""
    args = parse_args(argv)
    cfg = load_runner_config(args)
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    loaders = cfg.get('test_dataloader') or {}
    if args.out is not None and loaders and 'dataset' not in loaders:
        raise ValueError(
            f'--out needs the config of one task, {args.config} is of '
            f'{", ".join(loaders)}; tools/misc/split_multitask.py cuts one out'
        )
    if args.show_dir is not None:
        write_painted_images(cfg, args.show_dir)
    if args.tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise ValueError(f'--tta needs tta_model and tta_pipeline in {args.config}')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    with safe_loading(), named_rank(), ended_process_group():
        runner = build_runner(cfg)
        if not args.allow_partial:
            hook = StrictLoadingHook(
                args.checkpoint,
                hint='--allow-partial evaluates all the same',
                but=TRAINING_PARTS,
            )
            runner.register_hook(hook)
        if args.out is not None:
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        runner.test()


if __name__ == '__main__':
    main()
