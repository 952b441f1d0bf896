"""Writes a report on the equilibrium of one image: an HTML page, and its pictures.

The page needs no other file and no network. It shows the prediction, the residual of
each branch against the evaluations, where in the image it is large, the features on the
way, the spectral radius and the adjoint solve. `--solvers` and `--compare-checkpoint`
show several solves side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import torch

from mdeq_mm.apis import load_config, single_layer, solving_mode
from mdeq_mm.benchmark import read_image
from mdeq_mm.cli import (
    add_cfg_options,
    add_checkpoint,
    int_of_at_least,
    non_negative_float,
)
from mdeq_mm.deq import PicardSolver
from mdeq_mm.inference import Predictor, examine_image, solver_named
from mdeq_mm.visualization import ReportCase, write_report


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help='image file')
    add_checkpoint(parser)
    parser.add_argument(
        '--out', default='equilibrium', help='folder of the files; default: %(default)s'
    )
    parser.add_argument(
        '--solvers',
        nargs='+',
        metavar='TYPE',
        help='solvers to compare, such as PicardSolver AndersonSolver, with the budget '
        'and tolerance of the config; default: that of the config',
    )
    parser.add_argument(
        '--compare-checkpoint',
        metavar='FILE',
        help='another checkpoint of the same config to compare with',
    )
    parser.add_argument(
        '--max-evals',
        type=int_of_at_least(1),
        help='budget of the forward solves; default: that of the config',
    )
    parser.add_argument(
        '--tol',
        type=non_negative_float,
        help='tolerance of the forward solves, 0 to spend the whole budget; default: '
        'that of the config',
    )
    parser.add_argument('--device', help='default: the accelerator, else the CPU')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if Path(args.out).exists() and not Path(args.out).is_dir():
        parser.error(f'--out must be a folder, got {args.out}')
    return args


def examine(
    args: argparse.Namespace, predictor: Predictor, suffix: str
) -> dict[str, ReportCase]:
    """Examines the image with each solver; returns the cases by name."""
    own = solving_mode(single_layer(predictor.model)).solver
    changes = {
        name: value
        for name, value in dict(max_evals=args.max_evals, tol=args.tol).items()
        if value is not None
    }
    cases = {}
    for name in args.solvers or [type(own).__name__]:
        # The same random direction for every case.
        torch.manual_seed(0)
        solver = replace(solver_named(name, own), **changes)
        cases[f'{name}{suffix}'] = examine_image(
            predictor, predictor.read(args.image), solver
        )
    return cases


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes the report."""
    args = parse_args(argv)
    read_image(args.image)
    cfg = load_config(args.config, args.cfg_options)
    for name in args.solvers or ():
        # An unknown name ends it before any model is loaded.
        solver_named(name, PicardSolver())
    files = [args.checkpoint]
    if args.compare_checkpoint is not None:
        files.append(args.compare_checkpoint)
    predictors = [
        Predictor(cfg, file, args.device, args.allow_partial) for file in files
    ]
    cases: dict[str, ReportCase] = {}
    for file, predictor in zip(files, predictors):
        suffix = f', {file}' if len(files) > 1 else ''
        cases.update(examine(args, predictor, suffix))
    title = f'Equilibrium of {Path(args.image).name}, {Path(args.config).stem}'
    for path in write_report(args.out, cases, title):
        print(f'{path} written')


if __name__ == '__main__':
    main()
