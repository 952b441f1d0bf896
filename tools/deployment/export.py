"""Exports a segmentor or classifier to a file that runs without this package.

The file has the whole model, from images to logits, at a fixed number of evaluations.
The normalisation of the images and the order of their channels are part of it. What is
lost is the stopping of each sample at its own time: every image takes all evaluations.

The tool compares the file with PyTorch, and writes none that computes something else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mdeq_mm.apis import image_shape, load_config, load_model, single_layer
from mdeq_mm.cli import (
    add_cfg_options,
    add_checkpoint,
    add_shape,
    int_of_at_least,
    positive_float,
)
from mdeq_mm.deploy import (
    DYNAMIC,
    FORMATS,
    SOLVERS,
    TOLERANCE,
    Check,
    DeployedNetwork,
    check_requirements,
    export,
    fixed_mode,
    relative_difference,
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_checkpoint(parser)
    parser.add_argument('--out', type=Path, required=True, help='file to write')
    parser.add_argument(
        '--format',
        choices=tuple(FORMATS),
        default='onnx',
        help='onnx, or torch for a program of torch.export; default: %(default)s',
    )
    parser.add_argument(
        '--evals',
        type=int_of_at_least(1),
        metavar='N',
        help='evaluations that each image takes; default: the budget of the config',
    )
    parser.add_argument(
        '--solver',
        choices=tuple(SOLVERS),
        help='default: that of the config if it is one of these, else anderson',
    )
    add_shape(parser)
    parser.add_argument(
        '--batch-size',
        type=int_of_at_least(1),
        default=1,
        metavar='B',
        help='number of images; default: %(default)s',
    )
    parser.add_argument(
        '--dynamic',
        nargs='*',
        choices=DYNAMIC,
        help='what may differ from --batch-size and --shape when the file runs; give '
        'no value for nothing; default: batch and size, or batch alone where the head '
        'has align_corners=True',
    )
    parser.add_argument(
        '--tolerance',
        type=positive_float,
        default=TOLERANCE,
        metavar='X',
        help='largest difference from PyTorch, relative to the largest logit; default: '
        '%(default)s',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    suffix = FORMATS[args.format]
    if args.out.suffix != suffix:
        parser.error(f'--out must end in {suffix}, got {args.out}')
    if args.out.is_dir():
        parser.error(f'--out must be a file, got the folder {args.out}')
    return args


def line_of(check: Check) -> str:
    """Returns a comparison in words."""
    shape = 'x'.join(map(str, check.shape))
    return (
        f'images {shape}: largest difference {check.difference:.1e} of the largest '
        f'logit; {1000 * check.seconds:.1f} ms, PyTorch '
        f'{1000 * check.torch_seconds:.1f} ms'
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Exports."""
    args = parse_args(argv)
    check_requirements(args.format)
    cfg = load_config(args.config, args.cfg_options)
    model = load_model(
        cfg, args.checkpoint, device='cpu', allow_partial=args.allow_partial
    )
    configured = single_layer(model).mode
    mode = fixed_mode(single_layer(model), args.solver, args.evals)
    network = DeployedNetwork(model, mode)
    images = network.example(args.batch_size, *(args.shape or image_shape(cfg)))
    checks = export(
        network, args.out, images, args.format, args.dynamic, args.tolerance
    )
    for check in checks:
        print(line_of(check))
    logits = network(images)
    with network.layer.using(mode=configured):
        difference = relative_difference(logits, network(images))
    dynamic = network.dynamic if args.dynamic is None else args.dynamic
    print(f'dynamic: {", ".join(dynamic) or "nothing"}')
    print(
        f'{network.kind}: each image takes {network.evals} evaluations by '
        f'{network.method}, none stops earlier; the largest difference from the model '
        f'as configured is {difference:.1e} of the largest logit'
    )
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
