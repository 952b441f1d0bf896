"""Measures what an MDEQ costs.

solvers  what a solver adds to the evaluations it makes, in both directions
models   inference and training step, next to stock backbones
memory   peak memory above the loaded model
sweep    which settings of the solvers need the fewest evaluations

All of them measure backbones alone. Times are processor times on CPU and those of the
device on CUDA; cases take turns, and a figure is the median of its rounds. Ratios carry
over to another machine, times do not.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.device import get_device
from torch import Tensor, nn

from mdeq_mm.benchmark import (
    STOCK_BACKBONES,
    Grid,
    Subject,
    has_torchdeq,
    measure_memory,
    measure_models,
    measure_solvers,
    sweep,
)
from mdeq_mm.utils.launch import (
    add_cfg_options,
    find_layer,
    image_shape,
    load_config,
    load_model,
)

MIB = 2**20


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def parse_args(argv: Optional[Sequence[str]] = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    solvers, models, memory, sweep = (
        commands.add_parser(name) for name in ('solvers', 'models', 'memory', 'sweep')
    )
    for command in (solvers, sweep):
        command.add_argument('config', help='config file')
        command.add_argument(
            '--checkpoint',
            help='checkpoint file; without --shape the images are then those of the '
            'test data set, otherwise random',
        )
        command.add_argument(
            '--evals',
            type=positive,
            metavar='N',
            help='evaluations of a solve; default: the budget of the config',
        )
    solvers.add_argument(
        '--torchdeq', action='store_true', help="measure torchdeq's solvers as well"
    )
    solvers.add_argument(
        '--memory',
        type=positive,
        metavar='M',
        help="updates that Broyden's methods keep; default: ours 10, torchdeq's all",
    )
    solvers.add_argument(
        '--history-dtype',
        choices=['bfloat16'],
        help="that of our solvers; default: the state's",
    )
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
            '--repeats', type=positive, default=5, help='rounds; default: %(default)s'
        )
    for command in (solvers, models, memory, sweep):
        command.add_argument(
            '--shape',
            type=positive,
            nargs=2,
            metavar=('H', 'W'),
            help='size of the images; default: the size of the data_preprocessor, or '
            '224 224 if it has none',
        )
        command.add_argument(
            '--batch-size', type=positive, default=2, help='default: %(default)s'
        )
        command.add_argument(
            '--threads', type=positive, default=1, help='on CPU; default: %(default)s'
        )
        command.add_argument('--json', metavar='FILE', help='file to write')
        add_cfg_options(command)
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def check_args(args: Namespace, parser: argparse.ArgumentParser) -> None:
    if args.command in ('solvers', 'sweep'):
        if args.evals is not None and args.evals < 3:
            parser.error(f'--evals must be at least 3, got {args.evals}')
    else:
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
    device = get_device()
    cfg = load_config(args)
    shape = args.shape or image_shape(cfg)
    if args.checkpoint is None:
        backbone = Subject(args.config, args.cfg_options).build()
    else:
        cfg.test_dataloader.batch_size = args.batch_size
        model, loader = load_model(cfg, args.checkpoint)
        backbone = model.backbone
    found = find_layer(backbone)
    if found is None:
        raise ValueError(f'{args.command} needs an MDEQ, {args.config} has none')
    backbone = backbone.to(device).eval()
    if args.checkpoint is None or args.shape is not None:
        images = torch.randn(
            args.batch_size, backbone.in_channels, *shape, device=device
        )
    else:
        images = model.data_preprocessor(next(iter(loader)))['inputs']
    return backbone, images, args.evals or found[1].solver.max_evals


def subjects_and_shape(args: Namespace) -> tuple[list[Subject], list[int]]:
    subjects = [Subject(config, args.cfg_options) for config in args.configs]
    cfg = load_config(Namespace(config=args.configs[0], cfg_options=args.cfg_options))
    shape = [args.batch_size, 3, *(args.shape or image_shape(cfg))]
    return subjects + [Subject(name) for name in args.backbones], shape


def run_solvers(args: Namespace) -> dict[str, Any]:
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
        print(f'\n{problem}: {1000 * result["bare"]:.1f} ms a bare evaluation')
        tols = next(iter(result['solvers'].values()))['evaluations_to']
        heads = ('evaluations', 'overhead', *(f'to {tol}' for tol in tols))
        print(f'{"":28}' + ''.join(f'{head:>12}' for head in heads))
        for name, solver in result['solvers'].items():
            cells = [f'{solver["evaluations"]}', f'{solver["overhead"]:.3f}']
            cells += [str(n or '-') for n in solver['evaluations_to'].values()]
            print(f'{name:28}' + ''.join(f'{cell:>12}' for cell in cells))
    return dict(images=list(images.shape), evals=n_evals, results=measured)


def run_models(args: Namespace) -> dict[str, Any]:
    subjects, shape = subjects_and_shape(args)
    images = torch.randn(*shape, device=get_device())
    measured = measure_models(subjects, images, args.repeats)
    reference = (args.backbones or [subjects[0].label])[0]
    print(f'\ntimes in those of {reference}: ', end='')
    print(', '.join(f'{measured[reference][k]["seconds"]:.3f} s {k}' for k in KINDS))
    heads = ('parameters', *KINDS, 'evaluations', 'products', 'MiB saved')
    print(f'{"":48}' + ''.join(f'{head:>13}' for head in heads))
    for label, result in measured.items():
        for kind in KINDS:
            seconds = measured[reference][kind]['seconds']
            result[kind]['ratio'] = result[kind]['seconds'] / seconds
        training = result['training']
        cells = [f'{result["parameters"]:,}']
        cells += [f'{result[kind]["ratio"]:.2f}' for kind in KINDS]
        cells += [str(training.get(key, '')) for key in ('evaluations', 'products')]
        cells.append(f'{result["saved_bytes"] / MIB:.1f}')
        print(f'{label:48}' + ''.join(f'{cell:>13}' for cell in cells))
    return dict(images=shape, reference=reference, results=measured)


KINDS = ('inference', 'training')


def run_memory(args: Namespace) -> dict[str, Any]:
    subjects, shape = subjects_and_shape(args)
    measured = measure_memory(subjects, shape, args.repeats, get_device())
    for label, cases in measured.items():
        print(f'\n{label}')
        for case, result in cases.items():
            print(f'{case:36}{result["bytes"] / MIB:10.1f} MiB')
    return dict(images=shape, results=measured)


def run_sweep(args: Namespace) -> dict[str, Any]:
    backbone, images, n_evals = load_problem(args)
    grid = Grid(**{name: getattr(args, name) for name in vars(Grid())})
    measured = sweep(backbone, images, n_evals, grid)
    for problem, rows in measured.items():
        tols = rows[0]['evaluations_to']
        print(
            f'\n{problem}: images that get there, most and mean evaluations; '
            'one that does not counts with the budget in the mean'
        )
        print(f'{"":56}' + ''.join(f'{f"to {tol}":>16}' for tol in tols))
        for row in rows:
            cells = [
                f'{c["reached"]} {c["max"] or "-":>5} {c["mean"]:6.1f}'
                for c in row['evaluations_to'].values()
            ]
            print(f'{row["solver"]:56}' + ''.join(f'{cell:>16}' for cell in cells))
    return dict(images=list(images.shape), evals=n_evals, results=measured)


def plot(args: Namespace, report: dict[str, Any]) -> None:
    from mdeq_mm.visualization import plot_bars

    results = report['results']
    if args.command == 'solvers':
        bars = {
            problem: {name: s['overhead'] for name, s in result['solvers'].items()}
            for problem, result in results.items()
        }
        label, title = 'time of a solve / that of its evaluations', args.config
    else:
        bars = {
            label: {kind: result[kind]['ratio'] for kind in KINDS}
            for label, result in results.items()
        }
        label, title = f'time / that of {report["reference"]}', ''
    plot_bars(bars, args.plot, label, Path(title).stem)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    for path in (args.json, getattr(args, 'plot', None)):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    runs = dict(
        solvers=run_solvers, models=run_models, memory=run_memory, sweep=run_sweep
    )
    environment = dict(
        torch=torch.__version__, device=get_device(), threads=args.threads
    )
    settings = {key: value for key, value in vars(args).items() if key != 'cfg_options'}
    settings['cfg_options'] = args.cfg_options and dict(args.cfg_options)
    amp = getattr(args, 'amp', False)
    with torch.autocast(get_device(), torch.bfloat16, enabled=amp):
        results = runs[args.command](args)
    report = dict(settings=settings, environment=environment, **results)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(report, indent=2) + '\n')
    if getattr(args, 'plot', None) is not None:
        plot(args, report)


if __name__ == '__main__':
    main()
