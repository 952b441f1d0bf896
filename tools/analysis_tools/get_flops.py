"""Counts parameters and FLOPs of a model, for one image.

Parts are counted by mmengine's FlopAnalyzer, as in the toolboxes' own tools: a
multiply-add is one FLOP; convolutions, matrix products, norms and up-sampling count,
element-wise operations do not. What an MDEQ costs is then

    evaluations x cell + everything else.

The solver's own arithmetic, weight normalisation (once an image) and losses are not
counted; nor is the evaluation that training adds, nor the backward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.model import BaseModel

from mdeq_mm.deq import UnrolledGradient
from mdeq_mm.utils.launch import (
    add_cfg_options,
    build_model,
    find_layer,
    image_shape,
    load_config,
)

CELL = 'cell, one evaluation'


class Part(NamedTuple):
    """Size of a part of a model."""

    parameters: int
    flops: int


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='size of the image; default: the size of the data_preprocessor, or 224 '
        '224 if it has none',
    )
    parser.add_argument(
        '--evals',
        type=int,
        metavar='N',
        help='another number of evaluations to give the total for',
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.shape is not None and min(args.shape) < 1:
        parser.error(f'--shape must be two positive sizes, got {args.shape}')
    if args.evals is not None and args.evals < 1:
        parser.error(f'--evals must be at least 1, got {args.evals}')
    return args


def count_parts(model: BaseModel, shape: tuple[int, int]) -> dict[str, Part]:
    """Counts the parts of a model, its cell evaluated once.

    Args:
        model (BaseModel): A segmentor or classifier in evaluation mode. Weight
            normalisation is folded, and its cell is evaluated once from now on.
        shape (tuple[int, int]): Height and width of the image.

    Returns:
        dict[str, Part]: Parts that add up to the model. The cell, if there is one, is
        the part :data:`CELL`.
    """
    sizes = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
    }
    found = find_layer(model)
    if found is not None:
        layer = found[1]
        # The shallow mode evaluates the cell without a solver around it.
        layer.shallow, layer.shallow_gradient = True, UnrolledGradient(1)
        # Tracing does not go with the parametrisation of the weights.
        model.backbone.switch_to_deploy()
    channels = 3 if found is None else model.backbone.in_channels
    image = torch.zeros(1, channels, *shape)
    with torch.no_grad():
        analyzer = FlopAnalyzer(model, (image,))
        analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops = analyzer.by_module()

    def part(name: str) -> Part:
        return Part(sizes.get(name, 0), flops[name])

    def rest(of: Part, *parts: Part) -> Part:
        return Part(*(a - sum(b) for a, *b in zip(of, *parts)))

    backbone, neck = part('backbone'), part('neck')
    parts = {}
    if found is None:
        parts['backbone'] = backbone
    else:
        parts[CELL] = part(f'{found[0]}.cell')
        parts['stem and injection'] = rest(backbone, parts[CELL])
    if 'neck' in sizes:
        parts['neck'] = neck
    # Segmentors call forward() of their heads, which the analyzer does not see.
    parts['head'] = rest(part(''), backbone, neck)
    return parts


def total_flops(parts: dict[str, Part], n_evals: int) -> int:
    """Returns the FLOPs of a model that evaluates its cell ``n_evals`` times."""
    rest = sum(part.flops for name, part in parts.items() if name != CELL)
    return rest + n_evals * parts[CELL].flops


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args)
    model = build_model(cfg)
    shape = tuple(args.shape) if args.shape else image_shape(cfg)
    found = find_layer(model)
    if found is None and args.evals is not None:
        raise ValueError(f'--evals needs an MDEQ, {args.config} has none')
    totals = {}
    if found is not None:
        layer = found[1]
        totals['budget of the solver'] = layer.solver.max_evals
        totals['shallow mode'] = layer.shallow_gradient.num_layers
    if args.evals is not None:
        totals['--evals'] = args.evals
    parts = count_parts(model, shape)

    print(f'{args.config}, one image of {shape[0]}x{shape[1]}')
    print(f'{"":48}{"parameters":>14}{"FLOPs":>22}')
    for name, part in parts.items():
        print(f'{name:48}{part.parameters:14,}{part.flops:22,}')
    parameters = sum(part.parameters for part in parts.values())
    if found is None:
        flops = sum(part.flops for part in parts.values())
        print(f'{"total":48}{parameters:14,}{flops:22,}')
    for name, n_evals in totals.items():
        label = f'total, {n_evals} evaluations ({name})'
        print(f'{label:48}{parameters:14,}{total_flops(parts, n_evals):22,}')


if __name__ == '__main__':
    main()
