"""Tests a model with fewer evaluations: its metrics, residual and time against them.

The model is tested once per budget, with loop, evaluators and hooks of its config. At
the budget of the config the metrics are those of tools/test.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from mdeq_mm.apis import build_runner, load_config, single_layer, solving_mode
from mdeq_mm.benchmark import BudgetedTest, accuracy_at_budgets
from mdeq_mm.checkpoints import TRAINING_PARTS, safe_loading
from mdeq_mm.cli import (
    add_cfg_options,
    add_checkpoint,
    int_of_at_least,
    non_negative_float,
)
from mdeq_mm.deq.checks import check_choice
from mdeq_mm.engine import StrictLoadingHook
from mdeq_mm.visualization import plot_budgets


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_checkpoint(parser)
    parser.add_argument(
        '--evals',
        type=int_of_at_least(1),
        nargs='+',
        metavar='N',
        default=(1, 2, 3, 4, 6, 8, 12),
        help='budgets; that of the config is always added; default: 1 2 3 4 6 8 12',
    )
    parser.add_argument(
        '--tol',
        type=non_negative_float,
        help='tolerance, 0 to spend every budget; default: that of the config',
    )
    parser.add_argument(
        '--metrics',
        nargs='+',
        metavar='NAME',
        help='metrics to plot, as the evaluators name them; default: all',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('accuracy_vs_evals.png'),
        help='picture; the figures go to a .json of the same name; default: '
        '%(default)s',
    )
    parser.add_argument('--work-dir', help='directory of the logs')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.out.suffix in ('', '.json'):
        parser.error(f'--out must end as a picture does, such as .png, got {args.out}')
    return args


def table_of(tests: Sequence[BudgetedTest]) -> str:
    """Returns the table of the tests as text."""
    names = list(tests[0].metrics)
    rows = [['budget', 'evaluations', 'residual', 'ms/image', *names]]
    for test in tests:
        figures = [f'{test.n_evals:.2f}', f'{test.residual:.2e}']
        metrics = [f'{test.metrics[name]:.4g}' for name in names]
        rows.append(
            [str(test.max_evals), *figures, f'{1000 * test.seconds:.2f}', *metrics]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return '\n'.join(
        '  '.join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Tests."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    cfg.load_from = args.checkpoint
    cfg.work_dir = args.work_dir or str(Path('work_dirs', Path(args.config).stem))
    with safe_loading():
        runner = build_runner(cfg)
        if not args.allow_partial:
            hint = '--allow-partial evaluates all the same'
            runner.register_hook(
                StrictLoadingHook(args.checkpoint, hint=hint, but=TRAINING_PARTS)
            )
        tests = []
        for test in accuracy_at_budgets(runner, args.evals, args.tol):
            # Only a test tells which metrics there are. The first one is enough.
            for name in args.metrics or ():
                check_choice('metrics', name, tuple(test.metrics))
            tests.append(test)
    runner.logger.info('%s\n%s', args.checkpoint, table_of(tests))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figures = args.out.with_suffix('.json')
    figures.write_text(json.dumps([asdict(test) for test in tests], indent=2) + '\n')
    solver = solving_mode(single_layer(runner.model)).solver
    plot_budgets(
        tests,
        args.out,
        title=f'{Path(args.config).stem}, {type(solver).__name__}',
        metrics=args.metrics,
        mark=solver.max_evals,
        stop_mode=solver.stop_mode,
    )
    print(f'{args.out} and {figures} written')


if __name__ == '__main__':
    main()
