"""Draws test images with their ground truth, if any, and the prediction.

A legend names the colours. `--residual` adds where the equilibrium is how exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mdeq_mm.apis import build_test_loader, load_config, load_model, toolbox_of
from mdeq_mm.cli import (
    add_cfg_options,
    add_checkpoint,
    fraction,
    int_of_at_least,
    positive_float,
)
from mdeq_mm.visualization import plot_segmentations, segment_samples


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        '--out', default='segmentation.png', help='default: %(default)s'
    )
    parser.add_argument(
        '--num-samples',
        type=int_of_at_least(1),
        default=8,
        help='number of images, evenly spaced over the test set; default: %(default)s',
    )
    parser.add_argument(
        '--residual',
        action='store_true',
        help='draw the residual of the equilibrium at each place, too',
    )
    parser.add_argument(
        '--side-by-side',
        action='store_true',
        help='draw the pictures of an image in a row instead of a column',
    )
    parser.add_argument(
        '--height',
        type=positive_float,
        default=1.7,
        help='height of each picture in inches of 150 pixels; default: %(default)s',
    )
    parser.add_argument(
        '--opacity',
        type=fraction,
        default=0.6,
        help='weight of the colours over the image; default: %(default)s',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Draws the images."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    if toolbox_of(cfg) != 'mmseg':
        raise ValueError(f'{args.config} must be for mmseg, got {toolbox_of(cfg)}')
    dataset = build_test_loader(cfg).dataset
    if not dataset.metainfo.get('classes'):
        raise ValueError(f'the test set of {args.config} must name its classes')
    model = load_model(cfg, args.checkpoint, allow_partial=args.allow_partial)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    plot_segmentations(
        segment_samples(model, dataset, args.num_samples, args.residual),
        args.out,
        classes=dataset.metainfo['classes'],
        palette=dataset.metainfo['palette'],
        title=Path(args.config).stem,
        opacity=args.opacity,
        height=args.height,
        side_by_side=args.side_by_side,
    )
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
