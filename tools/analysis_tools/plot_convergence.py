"""Plots how the equilibria of test images converge, one line per image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mdeq_mm.apis import (
    build_test_loader,
    load_config,
    load_model,
    single_layer,
    solving_mode,
)
from mdeq_mm.benchmark import convergence_trace, name_samples
from mdeq_mm.cli import add_cfg_options, add_checkpoint, int_of_at_least
from mdeq_mm.visualization import plot_convergence


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_checkpoint(parser)
    parser.add_argument('--out', default='convergence.png', help='default: %(default)s')
    parser.add_argument(
        '--num-samples',
        type=int_of_at_least(1),
        default=16,
        help='number of images; default: %(default)s',
    )
    parser.add_argument(
        '--max-evals',
        type=int_of_at_least(1),
        default=40,
        help='evaluations to show, whatever the budget and tolerance of the config; '
        'default: %(default)s',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Plots the convergence."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    model = load_model(cfg, args.checkpoint, allow_partial=args.allow_partial)
    solver = solving_mode(single_layer(model)).solver
    batches = name_samples(build_test_loader(cfg))
    trace = convergence_trace(model, batches, args.num_samples, args.max_evals)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    plot_convergence(
        trace,
        args.out,
        title=f'{Path(args.config).stem}, {type(solver).__name__}',
        tol=solver.tol or None,
        max_evals=solver.max_evals,
        stop_mode=solver.stop_mode,
    )
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
