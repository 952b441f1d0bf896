"""Counts what it saves to start each frame of a video from the frame before.

The frames are those of a folder, in the order of their names, or a window that pans
over an image. Each frame is solved twice to the same tolerance: from zero, and from the
equilibrium of the frame before. Frames that reach the tolerance both ways are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from mdeq_mm.apis import load_config, load_model, single_layer, solving_mode
from mdeq_mm.benchmark import (
    Saving,
    compare_starts,
    pan,
    preprocess,
    read_frames,
    read_image,
)
from mdeq_mm.cli import (
    add_cfg_options,
    add_checkpoint,
    int_of_at_least,
    non_negative_float,
    positive_float,
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_checkpoint(parser)
    parser.add_argument(
        'source', type=Path, help='an image to pan over, or a folder of frames'
    )
    parser.add_argument(
        '--num-frames',
        type=int_of_at_least(2),
        default=60,
        help='number of frames at most; default: %(default)s',
    )
    parser.add_argument(
        '--speed',
        type=non_negative_float,
        default=1.0,
        help='of the pan to the right, in pixels per frame; default: %(default)s',
    )
    parser.add_argument(
        '--size',
        type=int_of_at_least(1),
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        default=(192, 256),
        help='of the window that pans; default: 192 256',
    )
    parser.add_argument(
        '--tol',
        type=positive_float,
        nargs='+',
        default=(1e-2, 1e-3, 1e-4),
        help='tolerances, in the measure of the solver; default: 1e-2 1e-3 1e-4',
    )
    parser.add_argument(
        '--max-evals',
        type=int_of_at_least(1),
        default=100,
        help='budget; default: %(default)s',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if not args.source.exists():
        parser.error(f'source must be an image or a folder, got {args.source}')
    return args


def load_frames(args: argparse.Namespace) -> list[np.ndarray]:
    """Reads the frames of a folder, or pans over an image."""
    if args.source.is_dir():
        return read_frames(args.source, args.num_frames)
    return pan(read_image(args.source), args.num_frames, args.speed, args.size)


def print_saving(saving: Saving) -> None:
    """Prints a row of the table."""
    shares = f'{saving.zero_reached:8.0%}{saving.previous_reached:10.0%}'
    cells = ['-', '-', '-']
    if saving.zero is not None and saving.previous is not None:
        ratio = saving.previous / saving.zero
        cells = [f'{saving.zero:g}', f'{saving.previous:g}', f'{ratio:.2f}']
    print(f'{saving.tol:10g}' + ''.join(f'{cell:>12}' for cell in cells) + shares)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the savings."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    frames = load_frames(args)
    model = load_model(cfg, args.checkpoint, allow_partial=args.allow_partial)
    solver = solving_mode(single_layer(model.backbone)).solver
    images = preprocess(frames, model)
    print(f'{args.source}, {len(frames)} frames of {frames[0].shape[0]}x', end='')
    print(f'{frames[0].shape[1]}, {type(solver).__name__}, {solver.stop_mode} residual')
    print(f'{"":10}{"median evaluations":>24}{"":12}{"reached":>16}')
    print(f'{"tol":>10}{"zero":>12}{"previous":>12}{"ratio":>12}', end='')
    print(f'{"zero":>8}{"previous":>10}')
    for saving in compare_starts(model.backbone, images, args.tol, args.max_evals):
        print_saving(saving)


if __name__ == '__main__':
    main()
