"""Converts a checkpoint of the official MDEQ releases to MMPretrain or MMSegmentation.

The file itself tells task and architecture. No code in it is run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.model import BaseModel

from mdeq_mm import __version__
from mdeq_mm.apis import build_model, load_config
from mdeq_mm.checkpoints import (
    OfficialCheckpoint,
    OfficialModel,
    check_official_state_dict,
    convert_official_state_dict,
    describe_official_state_dict,
    read_official_checkpoint,
)
from mdeq_mm.cli import add_cfg_options

SCOPES = {'classification': 'mmpretrain', 'segmentation': 'mmseg'}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, help='official checkpoint file')
    parser.add_argument('dst', type=Path, nargs='?', help='file to write')
    parser.add_argument(
        '--inspect',
        action='store_true',
        help='print what the file is and a config of its model; write nothing',
    )
    parser.add_argument(
        '--config',
        help='config whose model the file has to fit; default: one of the shapes in '
        'the file',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.inspect == (args.dst is not None):
        parser.error('give either DST or --inspect')
    return args


def report(checkpoint: OfficialCheckpoint, described: OfficialModel) -> None:
    """Prints what is known about a file."""
    facts: dict[str, Any] = {
        'sha256': checkpoint.sha256,
        'release': checkpoint.release,
        'task': described.task,
        'arch': described.arch,
        'classes': described.num_classes,
        'parameters': f'{described.num_parameters:,}',
    }
    if described.task == 'classification':
        facts['head'] = (
            f'head_channels={described.head_channels}, '
            f'out_channels={described.out_channels}'
        )
    if described.downsample_times is None:
        facts['stem'] = 'the weights do not tell the strides, 2 and 2 are assumed'
    for prefix, n_keys in checkpoint.dropped.items():
        facts[f'dropped {prefix}*'] = f'{n_keys} keys'
    for name, fact in facts.items():
        print(f'{name}: {fact}')


def model_config(args: argparse.Namespace, described: OfficialModel) -> Config:
    """Returns the config of the model that the file has to fit."""
    if args.config is not None:
        return load_config(args.config, args.cfg_options)
    cfg = dict(
        custom_imports=dict(imports=['mdeq_mm'], allow_failed_imports=False),
        default_scope=SCOPES[described.task],
        model=described.model_config(),
    )
    return Config(cfg)


def build_reference(cfg: Config) -> BaseModel:
    """Builds a model without memory, for the shapes of its tensors."""
    try:
        with torch.device('meta'):
            return build_model(cfg)
    except ImportError as error:
        raise ImportError(
            f'the model is one of {cfg.default_scope}: {error}'
        ) from error
    except ValueError as error:
        raise ValueError(
            f'the model could not be built (--config can name another one): {error}'
        ) from error


def save(checkpoint: dict, path: Path) -> None:
    """Writes a checkpoint. At any time a whole file, or none, is at the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with unfinished.open('wb') as file:
            torch.save(checkpoint, file)
        unfinished.replace(path)
    except RuntimeError as error:  # torch raises it when the disk is full
        raise OSError(f'{path} could not be written: {error}') from error
    finally:
        unfinished.unlink(missing_ok=True)


def convert(args: argparse.Namespace) -> None:
    """Converts or inspects a file."""
    if args.dst is not None and args.dst.is_dir():
        raise ValueError(f'DST must be a file, {args.dst} is a directory')
    if args.dst is not None and args.dst.exists() and args.dst.samefile(args.src):
        raise ValueError(f'SRC and DST are the same file, {args.src}')
    checkpoint = read_official_checkpoint(args.src)
    described = describe_official_state_dict(checkpoint.state_dict)
    report(checkpoint, described)

    cfg = model_config(args, described)
    check_official_state_dict(checkpoint.state_dict, build_reference(cfg))
    if args.inspect:
        print(f'\n{cfg.pretty_text}')
        return
    meta = dict(
        mdeq_mm_version=__version__,
        task=described.task,
        arch=described.arch,
        num_classes=described.num_classes,
        source=args.src.name,
        source_sha256=checkpoint.sha256,
        source_release=checkpoint.release,
    )
    state_dict = convert_official_state_dict(checkpoint.state_dict)
    save(dict(meta=meta, state_dict=state_dict), args.dst)
    print(f'written: {args.dst}')


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Converts or inspects a file; returns the exit code."""
    args = parse_args(argv)
    try:
        convert(args)
    except (OSError, ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
