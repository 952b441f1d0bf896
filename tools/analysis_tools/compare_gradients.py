"""Compares ways to differentiate the equilibrium of a trained model.

For one batch of test images and their labels it prints the work, the memory that
autograd saves for backward, and the cosine between the gradient of all parameters and
the exact one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from mdeq_mm.apis import (
    build_test_loader,
    load_config,
    load_model,
    single_layer,
    solving_mode,
)
from mdeq_mm.benchmark import compare_gradients, name_samples
from mdeq_mm.cli import add_cfg_options, add_checkpoint, int_of_at_least


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_checkpoint(parser)
    parser.add_argument(
        '--max-evals',
        type=int_of_at_least(1),
        default=200,
        help='budget of both solves of the exact gradient; default: %(default)s',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the comparison."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    model = load_model(cfg, args.checkpoint, allow_partial=args.allow_partial)
    batch = next(iter(name_samples(build_test_loader(cfg))))
    data = model.data_preprocessor(batch, training=True)
    mode = solving_mode(single_layer(model))
    print(f'forward: {mode.solver}\nas configured: {type(mode.gradient).__name__}')
    print(f'{"gradient":32}{"evaluations":>12}{"products":>10}{"MiB":>8}{"cosine":>9}')
    for name, cost in compare_gradients(model, data, args.max_evals).items():
        print(
            f'{name:32}{cost.evaluations:12}{cost.products:10}'
            f'{cost.saved_bytes / 2**20:8.1f}{cost.cosine:9.4f}'
        )


if __name__ == '__main__':
    main()
