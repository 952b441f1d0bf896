"""What train.py and test.py share: arguments, config and processes of a run."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mdeq_mm.apis import load_config
from mdeq_mm.cli import add_cfg_options


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of both tools."""
    add_cfg_options(parser)
    parser.add_argument('--work-dir', help='directory of logs and checkpoints')
    parser.add_argument(
        '--amp', action='store_true', help='use automatic mixed precision'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what starts the processes',
    )
    # torch.distributed.launch gives this argument, and mim still uses that launcher.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def load_runner_config(args: argparse.Namespace) -> Config:
    """Loads a config for a runner, with launcher and work directory set."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Builds the runner of a config, on several processes also without a GPU."""
    prepare_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def prepare_cpu_processes(cfg: Config) -> None:
    """Lets several processes train on CPU, which mmengine's launchers do not.

    They set a CUDA device before the process group exists, and pass it on to
    DistributedDataParallel. Where there is no accelerator, this function makes the
    group, with gloo, and configures the wrapper without a device. Elsewhere it does
    nothing.

    Args:
        cfg (Config): Config of the run, changed in place.

    Raises:
        ValueError: If there is no accelerator and the launcher is neither ``'none'``
            nor ``'pytorch'``.
    """
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f"without a GPU launcher must be 'none' or 'pytorch', got {cfg.launcher!r}"
        )
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )
