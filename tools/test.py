"""Evaluates a checkpoint of MMSegmentation or MMPretrain."""

import argparse

from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mdeq_mm.utils.launch import (
    add_common_arguments,
    load_runner_config,
    prepare_cpu_processes,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='file (.pkl) to write the predictions to')
    parser.add_argument('--show-dir', help='directory to write painted images to')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='augment at test time, with tta_model and tta_pipeline of the config',
    )
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def main() -> None:
    args = parse_args()
    cfg = load_runner_config(args)
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show_dir is not None:
        paint = cfg.default_hooks.visualization
        paint.setdefault('interval', 1)
        if cfg.default_scope == 'mmseg':
            paint.draw = True
            cfg.visualizer.save_dir = args.show_dir
        else:
            paint.enable = True
            paint.out_dir = args.show_dir
    if args.tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise ValueError(f'--tta needs tta_model and tta_pipeline in {args.config}')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    prepare_cpu_processes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    main()
