"""Writes the weights of a training checkpoint into a file that can be handed out.

The file holds the weights, the names of the classes, and how long and when the model
was trained. The tools of the toolboxes keep the whole config, with the paths of the
machine that trained. Date and digest become part of the name, as in OpenMMLab.

    OUT.pth is written as OUT_DATE-DIGEST.pth
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import torch

from mdeq_mm import __version__
from mdeq_mm.checkpoints import load_checkpoint

# What others may know of a training. The other entries name files, hosts and settings.
META = ('dataset_meta', 'epoch', 'iter', 'mmengine_version', 'seed', 'time')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path, help='checkpoint of a training')
    parser.add_argument('out', type=Path, metavar='OUT.pth', help='file to write')
    args = parser.parse_args(argv)
    if args.out.suffix != '.pth':
        parser.error(f'OUT.pth must end in .pth, got {args.out}')
    return args


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the file."""
    args = parse_args(argv)
    content = load_checkpoint(args.checkpoint)
    meta = content.get('meta', {})
    if 'state_dict' not in content or 'time' not in meta:
        raise ValueError(
            f'{args.checkpoint} must be a checkpoint that a training has written'
        )
    about = {key: meta[key] for key in META if key in meta}
    about['mdeq_mm_version'] = __version__
    date = meta['time'].partition('_')[0]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix='.unfinished') as name:
        part = Path(name, args.out.name)
        torch.save(dict(meta=about, state_dict=content['state_dict']), part)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        stem = f'{args.out.stem}_{date}-{digest[:8]}'
        path = part.replace(args.out.with_stem(stem))
    print(f'Weights: {path}')
    print(f'SHA256: {digest}')
    print(f'{path.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
