"""Measures what an MDEQ costs.

solvers  what a solver adds to the evaluations it makes, in both directions
models   inference and training step, next to stock backbones
memory   peak memory above that of the loaded model
sweep    which settings of the solvers need the fewest evaluations

All of them measure backbones alone. Times are processor times on CPU and those of the
device on CUDA. Cases take turns, and a figure is the median of its rounds. Ratios carry
over to another machine, times do not.
"""

from __future__ import annotations

import argparse
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.device import get_device
from torch import Tensor, nn

from mdeq_mm.apis import find_layer, image_shape, load_config, solving_mode
from mdeq_mm.benchmark import (
    STOCK_BACKBONES,
    Grid,
    Subject,
    has_torchdeq,
    load_with_images,
    measure_memory,
    measure_models,
    measure_solvers,
    sweep,
)
from mdeq_mm.cli import add_cfg_options, add_shape, int_of_at_least

MIB = 2**20
KINDS = ('inference', 'training')
positive = int_of_at_least(1)


def parse_args(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parses the command line."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    solvers, models, memory, sweep = (
        commands.add_parser(name) for name in ('solvers', 'models', 'memory', 'sweep')
    )
    for command in (solvers, sweep):
        add_problem_arguments(command)
    add_solver_arguments(solvers)
    for command in (models, memory):
        command.add_argument('configs', nargs='+', help='config files')
        command.add_argument(
            '--backbones',
            nargs='+',
            choices=list(STOCK_BACKBONES),
            default=[],
            help='stock backbones to measure as well',
        )
    for name, values in vars(Grid()).items():
        kind = type(values[0])
        sweep.add_argument(f'--{name}', type=kind, nargs='+', default=values)
    for command in (solvers, models, sweep):
        command.add_argument('--amp', action='store_true', help='autocast in bfloat16')
    for command in (solvers, models):
        command.add_argument('--plot', metavar='FILE', help='bar chart to write')
    for command in (solvers, models, memory):
        command.add_argument(
            '--repeats',
            type=positive,
            default=5,
            help='number of rounds; default: %(default)s',
        )
    for command in (solvers, models, memory, sweep):
        add_common_arguments(command)
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def add_problem_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the commands that solve the problems of one model."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--checkpoint',
        help='checkpoint file; without --shape the images are then those of the test '
        'data set, otherwise random',
    )
    parser.add_argument(
        '--evals',
        type=int_of_at_least(3),
        metavar='N',
        help='evaluations of a solve; default: the budget of the config',
    )


def add_solver_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command ``solvers``."""
    parser.add_argument(
        '--torchdeq', action='store_true', help="measure torchdeq's solvers as well"
    )
    parser.add_argument(
        '--memory',
        type=positive,
        metavar='M',
        help="updates that Broyden's methods keep; default: ours 10, torchdeq's all",
    )
    parser.add_argument(
        '--history-dtype',
        choices=['bfloat16'],
        help='dtype of the histories of our solvers; default: that of the state',
    )


def add_common_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of all commands."""
    add_shape(parser)
    parser.add_argument(
        '--batch-size', type=positive, default=2, help='default: %(default)s'
    )
    parser.add_argument(
        '--threads', type=positive, default=1, help='on CPU; default: %(default)s'
    )
    parser.add_argument('--json', metavar='FILE', help='file to write')
    add_cfg_options(parser)


def check_args(args: Namespace, parser: ArgumentParser) -> None:
    """Checks what argparse does not."""
    if args.command in ('models', 'memory'):
        labels = [Path(config).stem for config in args.configs] + args.backbones
        if len(set(labels)) < len(labels):
            parser.error(f'models must have different names, got {", ".join(labels)}')
    if args.command == 'solvers' and args.torchdeq and not has_torchdeq():
        parser.error(
            '--torchdeq needs the package torchdeq, which is not installed: '
            'pip install torchdeq'
        )


def load_problem(args: Namespace) -> tuple[nn.Module, Tensor, int]:
    """Returns backbone, images and number of evaluations."""
    backbone, images = load_with_images(
        args.config, args.cfg_options, args.checkpoint, args.shape, args.batch_size
    )
    found = find_layer(backbone)
    if found is None:
        raise ValueError(f'{args.command} needs an MDEQ, {args.config} has none')
    return backbone, images, args.evals or solving_mode(found[1]).solver.max_evals


def load_subjects(args: Namespace) -> tuple[list[Subject], list[int]]:
    """Returns the backbones to measure, and the shape of their images."""
    subjects = [Subject(config, args.cfg_options) for config in args.configs]
    subjects += [Subject(name) for name in args.backbones]
    shape = args.shape or image_shape(load_config(args.configs[0], args.cfg_options))
    return subjects, [args.batch_size, 3, *shape]


def run_solvers(args: Namespace) -> dict[str, Any]:
    """Measures and prints what solvers add."""
    backbone, images, n_evals = load_problem(args)
    measured = measure_solvers(
        backbone,
        images,
        n_evals,
        args.repeats,
        torchdeq=args.torchdeq,
        memory=args.memory,
        history_dtype=args.history_dtype,
    )
    for problem, result in measured.items():
        print(f'\n{problem}: {1000 * result["bare"]:.1f} ms per bare evaluation')
        tols = next(iter(result['solvers'].values()))['evaluations_to']
        print_row('', 28, 12, 'evaluations', 'overhead', *(f'to {tol}' for tol in tols))
        for name, solver in result['solvers'].items():
            numbers = [n or '-' for n in solver['evaluations_to'].values()]
            overhead = f'{solver["overhead"]:.3f}'
            print_row(name, 28, 12, solver['evaluations'], overhead, *numbers)
    return dict(images=list(images.shape), evals=n_evals, results=measured)


def run_models(args: Namespace) -> dict[str, Any]:
    """Measures and prints inference and training step of backbones."""
    subjects, shape = load_subjects(args)
    images = torch.randn(*shape, device=get_device())
    measured = measure_models(subjects, images, args.repeats)
    reference = (args.backbones or [subjects[0].label])[0]
    seconds = {kind: measured[reference][kind]['seconds'] for kind in KINDS}
    print(f'\ntimes in those of {reference}: ', end='')
    print(', '.join(f'{seconds[kind]:.3f} s {kind}' for kind in KINDS))
    heads = ('parameters', *KINDS, 'evaluations', 'products', 'MiB saved')
    print_row('', 48, 13, *heads)
    for label, result in measured.items():
        for kind in KINDS:
            result[kind]['ratio'] = result[kind]['seconds'] / seconds[kind]
        print_row(
            *(label, 48, 13, f'{result["parameters"]:,}'),
            *(f'{result[kind]["ratio"]:.2f}' for kind in KINDS),
            *(result['training'].get(key, '') for key in ('evaluations', 'products')),
            f'{result["saved_bytes"] / MIB:.1f}',
        )
    return dict(images=shape, reference=reference, results=measured)


def run_memory(args: Namespace) -> dict[str, Any]:
    """Measures and prints the peak memory of backbones."""
    subjects, shape = load_subjects(args)
    measured = measure_memory(subjects, shape, args.repeats, get_device())
    for label, cases in measured.items():
        print(f'\n{label}')
        for case, result in cases.items():
            print(f'{case:36}{result["bytes"] / MIB:10.1f} MiB')
    return dict(images=shape, results=measured)


def run_sweep(args: Namespace) -> dict[str, Any]:
    """Measures and prints which settings need the fewest evaluations."""
    backbone, images, n_evals = load_problem(args)
    grid = Grid(**{name: getattr(args, name) for name in vars(Grid())})
    measured = sweep(backbone, images, n_evals, grid)
    for problem, rows in measured.items():
        tols = rows[0]['evaluations_to']
        print(
            f'\n{problem}: number of images that get there, most and mean evaluations; '
            'an image that does not get there counts with the budget in the mean'
        )
        print_row('', 56, 16, *(f'to {tol}' for tol in tols))
        for row in rows:
            cells = [
                f'{c["reached"]} {c["max"] or "-":>5} {c["mean"]:6.1f}'
                for c in row['evaluations_to'].values()
            ]
            print_row(row['solver'], 56, 16, *cells)
    return dict(images=list(images.shape), evals=n_evals, results=measured)


def print_row(label: str, label_width: int, width: int, *cells: object) -> None:
    """Prints a row of a table."""
    print(f'{label:{label_width}}' + ''.join(f'{cell!s:>{width}}' for cell in cells))


def plot(args: Namespace, report: Mapping[str, Any]) -> None:
    """Draws the ratios of a report as bars."""
    from mdeq_mm.visualization import plot_bars

    results = report['results']
    if args.command == 'solvers':
        bars = {
            problem: {name: s['overhead'] for name, s in result['solvers'].items()}
            for problem, result in results.items()
        }
        title = Path(args.config).stem
        plot_bars(bars, args.plot, 'time of a solve / that of its evaluations', title)
    else:
        bars = {
            label: {kind: result[kind]['ratio'] for kind in KINDS}
            for label, result in results.items()
        }
        plot_bars(bars, args.plot, f'time / that of {report["reference"]}')


RUNS = dict(solvers=run_solvers, models=run_models, memory=run_memory, sweep=run_sweep)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measures, prints, and writes what is asked for."""
    args = parse_args(argv)
    for path in (args.json, getattr(args, 'plot', None)):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = dict(vars(args), cfg_options=args.cfg_options and dict(args.cfg_options))
    environment = dict(
        torch=torch.__version__, device=get_device(), threads=args.threads
    )
    amp = getattr(args, 'amp', False)
    with torch.autocast(get_device(), torch.bfloat16, enabled=amp):
        results = RUNS[args.command](args)
    report = dict(settings=settings, environment=environment, **results)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(report, indent=2) + '\n')
    if getattr(args, 'plot', None) is not None:
        plot(args, report)


if __name__ == '__main__':
    main()
