"""Kills, long runs, many sizes and threads: what takes too long for a test.

    python tests/soak/run.py [--form short] [--only PART ...] [--out FILE]

It prints a table of figures, and ends with 1 if something went wrong. The full form
takes up to 25 minutes on two cores. It runs on Linux alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ['OMP_NUM_THREADS'] = '1'
HERE = Path(__file__).resolve().parent
if not __package__:
    # The checkout, which need not be installed, and what the tests share.
    sys.path += [str(HERE.parents[1]), str(HERE.parent)]

SEED = 14


@dataclass(frozen=True)
class Form:
    """How much is done."""

    random_kills: int
    aimed_kills: int
    random_kills_of_two: int
    aimed_kills_of_two: int
    steps: int
    builds: int
    sizes: int
    compiled_sizes: int
    predictions: int  # of each thread


FORMS = dict(
    full=Form(
        random_kills=30,
        aimed_kills=30,
        random_kills_of_two=10,
        aimed_kills_of_two=10,
        steps=10_000,
        builds=300,
        sizes=100,
        compiled_sizes=100,
        predictions=200,
    ),
    short=Form(
        random_kills=1,
        aimed_kills=1,
        random_kills_of_two=0,
        aimed_kills_of_two=1,
        steps=100,
        builds=20,
        sizes=4,
        compiled_sizes=2,
        predictions=5,
    ),
)


def parts(form: Form, folder: Path) -> dict[str, Callable[[], tuple[Any, list[str]]]]:
    """Returns the parts by name; each returns figures and what went wrong."""
    import growth
    import kills
    import uses

    def killed(n_random: int, n_aimed: int, n_processes: int) -> Any:
        data = folder / 'kills'
        kills.prepare(data)
        return kills.run_kills(data, n_random, n_aimed, n_processes, SEED)

    return {
        'kills': lambda: killed(form.random_kills, form.aimed_kills, 1),
        'kills of two processes': lambda: killed(
            form.random_kills_of_two, form.aimed_kills_of_two, 2
        ),
        'steps': lambda: growth.train_and_predict(form.steps),
        'builds': lambda: growth.build(form.builds),
        'sizes': lambda: uses.use_sizes(form.sizes, SEED, compiled=False),
        'sizes, compiled': lambda: uses.use_sizes(
            form.compiled_sizes, SEED, compiled=True
        ),
        'threads': lambda: uses.use_threads(form.predictions, SEED),
    }


@dataclass
class Result:
    """What a part has found."""

    name: str
    figures: Mapping[str, Any]
    faults: list[str]
    seconds: float


def apart(name: str, part: Callable[[], tuple[Any, list[str]]]) -> Result:
    """Runs a part in a fork, so that none meets what another has left."""
    context = get_context('fork')
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        import torch

        torch.set_num_threads(1)
        figures, faults = part()
        there.send((dict(figures), faults))

    begin = time.monotonic()
    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        figures, faults = here.recv()
    except EOFError:
        figures, faults = {}, ['the part has not ended as it should']
    process.join()
    return Result(name, figures, faults, time.monotonic() - begin)


def show(value: Any) -> str:
    """Formats a figure."""
    return f'{value:.1e}' if isinstance(value, float) and value else f'{value:.0f}'


def table(form: Form, results: Sequence[Result]) -> str:
    """Returns the figures in Markdown."""
    amounts = dict(
        steps=f'{form.steps} steps, growth: ',
        builds=f'{form.builds} builds, growth: ',
    )
    lines = ['| part | figures | faults | seconds |', '|---|---|---:|---:|']
    for result in results:
        figures = ', '.join(f'{show(v)} {key}' for key, v in result.figures.items())
        figures = amounts.get(result.name, '') + figures
        row = (result.name, figures, len(result.faults), f'{result.seconds:.0f}')
        lines.append('| ' + ' | '.join(map(str, row)) + ' |')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--form', choices=FORMS, default='full')
    parser.add_argument('--only', nargs='+', metavar='PART', help='some parts alone')
    parser.add_argument('--out', type=Path, help='file for the table')
    args = parser.parse_args(argv)
    form = FORMS[args.form]
    results = []
    with tempfile.TemporaryDirectory(prefix='soak-') as folder:
        known = parts(form, Path(folder))
        wanted = args.only or list(known)
        if not set(wanted) <= set(known):
            parser.error(f'--only must be of {", ".join(known)}')
        for name in wanted:
            result = apart(name, known[name])
            results.append(result)
            print(f'{result.seconds:.0f} s  {name}: {result.figures}', flush=True)
            for fault in result.faults:
                print(f'  fault: {fault}', flush=True)
    report = table(form, results)
    print(f'\n{report}')
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report + '\n')
    return int(any(result.faults for result in results))


if __name__ == '__main__':
    sys.exit(main())
