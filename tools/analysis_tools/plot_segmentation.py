"""Draws test images with their ground truth, if any, and the prediction."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mdeq_mm.apis import build_test_loader, load_config, load_model, toolbox_of
from mdeq_mm.cli import add_cfg_options, add_checkpoint, int_of_at_least
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
        segment_samples(model, dataset, args.num_samples),
        args.out,
        classes=dataset.metainfo['classes'],
        palette=dataset.metainfo['palette'],
        title=Path(args.config).stem,
    )
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
