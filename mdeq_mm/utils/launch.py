"""What the command-line tools share."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Optional

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from ..deq import EquilibriumLayer

SCOPES = ('mmseg', 'mmpretrain')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value; nested keys are '
        'joined by dots, lists are written key="[a,b]"',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the tools that make a runner."""
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
    # Given by torch.distributed.launch, which mim still uses.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def load_config(args: argparse.Namespace) -> Config:
    """Loads ``args.config`` and merges ``args.cfg_options`` into it.

    Raises:
        ValueError: If the config is of no toolbox this project extends.
    """
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if cfg.get('default_scope') not in SCOPES:
        raise ValueError(
            f'default_scope of {args.config} must be one of {", ".join(SCOPES)}, '
            f'got {cfg.get("default_scope")!r}'
        )
    return cfg


def load_runner_config(args: argparse.Namespace) -> Config:
    """Loads a config for a runner, with launcher and work directory set."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def build_model(cfg: Config) -> BaseModel:
    """Builds the model of a config in evaluation mode, without SyncBN."""
    init_default_scope(cfg.default_scope)
    import_module(f'{cfg.default_scope}.models')
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def load_model(cfg: Config, checkpoint: str) -> tuple[BaseModel, DataLoader]:
    """Builds the model of a config in evaluation mode, and its test data loader."""
    model = build_model(cfg)
    load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device()), Runner.build_dataloader(cfg.test_dataloader)


def image_shape(cfg: Config) -> tuple[int, int]:
    """Returns the size ``(H, W)`` that the data preprocessor of a config pads to."""
    preprocessor = cfg.model.get('data_preprocessor') or {}
    height, width = preprocessor.get('size') or (224, 224)
    return height, width


def find_layer(model: nn.Module) -> Optional[tuple[str, EquilibriumLayer]]:
    """Returns name and module of the equilibrium layer, None if there is none."""
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, EquilibriumLayer)
    ]
    if len(layers) > 1:
        raise ValueError(
            'a model must have at most one equilibrium layer, '
            f'got {", ".join(name for name, _ in layers)}'
        )
    return layers[0] if layers else None


def prepare_cpu_processes(cfg: Config) -> None:
    """Lets several processes train on CPU, which mmengine's launchers do not.

    They set a CUDA device before the process group exists, and pass it on to
    DistributedDataParallel. Where there is no accelerator the group is made here, with
    gloo, and the wrapper is configured without a device. Otherwise nothing is done.

    Args:
        cfg (Config): Config of the run, changed in place.

    Raises:
        ValueError: If there is no accelerator and the launcher is not ``'pytorch'``.
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
