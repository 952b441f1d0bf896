"""Predicts an image with a segmentor or a classifier, and draws the prediction."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from mdeq_mm.apis import load_config
from mdeq_mm.cli import add_cfg_options, add_checkpoint
from mdeq_mm.inference import Predictor, check_image_path, write_image


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image file')
    add_checkpoint(parser)
    parser.add_argument('--out', default='prediction.png', help='default: %(default)s')
    parser.add_argument('--device', help='default: the accelerator, else the CPU')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Predicts the image."""
    args = parse_args(argv)
    check_image_path(args.out)
    cfg = load_config(args.config, args.cfg_options)
    predictor = Predictor(cfg, args.checkpoint, args.device, args.allow_partial)
    image = predictor.read(args.image)
    prediction = predictor(image)
    for name, share in predictor.shares(prediction):
        print(f'{share:7.2%} {name}')
    for solve in prediction.solves:
        print(solve)
    if not prediction.solves:
        print('no equilibrium was solved for')
    write_image(args.out, predictor.draw(image, prediction))
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
