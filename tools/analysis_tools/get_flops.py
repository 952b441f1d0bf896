"""Counts parameters and FLOPs of a model, for one image.

mmengine's FlopAnalyzer counts the parts, as in the toolboxes' own tools: a multiply-add
is one FLOP; convolutions, matrix products, norms and up-sampling count, element-wise
operations do not. What an MDEQ costs is then

    evaluations x cell + everything else.

Not counted are the solver's own arithmetic, weight normalisation (once per image),
losses, the evaluation that training adds, and the backward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from mdeq_mm.apis import build_model, find_layer, image_shape, load_config, solving_mode
from mdeq_mm.benchmark import CELL, Part, count_parts, total_flops
from mdeq_mm.cli import add_cfg_options, add_shape, int_of_at_least


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    add_shape(parser)
    parser.add_argument(
        '--evals',
        type=int_of_at_least(1),
        metavar='N',
        help='another number of evaluations to give the total for',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def print_parts(parts: dict[str, Part], totals: dict[str, int]) -> None:
    """Prints the parts, and the total for each number of evaluations."""
    print(f'{"":48}{"parameters":>14}{"FLOPs":>22}')
    for name, part in parts.items():
        print(f'{name:48}{part.parameters:14,}{part.flops:22,}')
    parameters = sum(part.parameters for part in parts.values())
    if CELL not in parts:
        print(f'{"total":48}{parameters:14,}{total_flops(parts):22,}')
    for name, n_evals in totals.items():
        label = f'total, {n_evals} evaluations ({name})'
        print(f'{label:48}{parameters:14,}{total_flops(parts, n_evals):22,}')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the counts."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    model = build_model(cfg)
    height, width = args.shape or image_shape(cfg)
    found = find_layer(model)
    totals = {}
    if found is not None:
        totals['budget of the solver'] = solving_mode(found[1]).solver.max_evals
        totals['unrolled mode'] = found[1].unrolled.num_layers
    elif args.evals is not None:
        raise ValueError(f'--evals needs an MDEQ, {args.config} has none')
    if args.evals is not None:
        totals['--evals'] = args.evals
    parts = count_parts(model, (height, width))
    print(f'{args.config}, one image of {height}x{width}')
    print_parts(parts, totals)


if __name__ == '__main__':
    main()
