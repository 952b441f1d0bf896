"""What train.py and test.py share: arguments, config and processes of a run."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Optional

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import Runner

from mdeq_mm import apis
from mdeq_mm.checkpoints import Newest, check_training_checkpoint, find_newest
from mdeq_mm.cli import add_cfg_options, positive_float
from mdeq_mm.engine import StrictLoadingHook


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
    parser.add_argument(
        '--timeout',
        type=positive_float,
        metavar='SECONDS',
        help='how long processes wait for each other before all end with an error; '
        'default: env_cfg.dist_cfg.timeout of the config, else 1800',
    )
    # torch.distributed.launch gives this argument, and mim still uses that launcher.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def load_runner_config(args: argparse.Namespace) -> Config:
    """Loads a config for a runner, with launcher and work directory set."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = apis.load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    if args.timeout is not None:
        cfg.merge_from_dict({'env_cfg.dist_cfg.timeout': args.timeout})
    return cfg


def choose_start(cfg: Config, resume: Optional[str] = None) -> Optional[Newest]:
    """Decides what a training goes on from.

    Args:
        cfg (Config): Config of the run. Its ``resume`` and ``load_from`` are set.
        resume (str, optional): A checkpoint, or ``'auto'`` for the newest whole one of
            the work directory. Defaults to None, what the config says.

    Returns:
        Newest, optional: The checkpoint, None if the config does not resume either.

    Raises:
        FileNotFoundError: If a checkpoint that was asked for does not exist.
        ValueError: If no training can go on from it.
    """
    if resume is None and cfg.get('resume'):
        named = cfg.resume if isinstance(cfg.resume, str) else cfg.get('load_from')
        resume = named or 'auto'
    if resume is None:
        return None
    if resume == 'auto':
        start = find_newest(_checkpoint_folders(cfg))
    else:
        start = Newest(resume, check_training_checkpoint(resume), {})
    cfg.resume = start.path is not None
    if start.path is not None:
        cfg.load_from = start.path
    return start


def _checkpoint_folders(cfg: Config) -> list[Path]:
    """Returns the folders that the checkpoint hook of a config saves to."""
    work_dir = Path(cfg.work_dir)
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    out_dir = hook.get('out_dir')
    return [work_dir] if out_dir is None else [work_dir, Path(out_dir, work_dir.name)]


def check_start(runner: Runner, start: Newest) -> None:
    """Makes sure that all processes go on from one checkpoint, and says from which.

    Args:
        runner (Runner): The runner. It compares the weights when it loads them.
        start (Newest): What this process has found.

    Raises:
        ValueError: If another process has found something else.
    """
    mine = None if start.path is None else (Path(start.path).name, start.position)
    found = all_gather_object(mine)
    if any(other != found[0] for other in found):
        raise ValueError(
            'all processes must resume from the same checkpoint: the work directory '
            f'must be one that all of them see; they have found {found}'
        )
    runner.logger.info('%s', start)
    if start.path is not None:
        runner.register_hook(StrictLoadingHook(start.path))


def build_runner(cfg: Config) -> Runner:
    """Builds the runner of a config, on several processes also without a GPU."""
    prepare_cpu_processes(cfg)
    return apis.build_runner(cfg)


@contextmanager
def named_rank() -> Iterator[None]:
    """Says which process it was that waited for others in vain.

    Torch says that an exchange has timed out, and not who did not take part.
    """
    try:
        yield
    except RuntimeError as error:
        n_processes = get_world_size()
        waited = re.search('timed out|connection closed', str(error), re.IGNORECASE)
        if n_processes == 1 or waited is None:
            raise
        raise RuntimeError(
            f'rank {get_rank()} of {n_processes} has waited in vain for another one. '
            'Look at the ranks without such a message: one of them has stalled or '
            'ended. --timeout says how long to wait'
        ) from error


@contextmanager
def ended_process_group() -> Iterator[None]:
    """Ends the process group that a run has begun, once the run has ended well.

    mmengine leaves it to the end of the interpreter, where a thread of the group that
    still runs aborts the process. After an error the other processes may not answer,
    so the group is left alone.
    """
    begun_before = torch.distributed.is_initialized()
    yield
    if torch.distributed.is_initialized() and not begun_before:
        torch.distributed.destroy_process_group()


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
