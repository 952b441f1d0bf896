"""Makes each environment that is promised anew, and tries the project in it.

    python tests/installs/run.py [--only CELL ...] [--tests PATH ...] [--out FILE]

An environment is made in a folder of its own, and deleted when it has been tried. In
each, tests that depend on versions run, and every toolbox that it has trains for two
iterations. The table says what came out, and the program ends with 1 if something
failed. A cell without an interpreter is in the table, too. An environment takes some
gigabytes and minutes; `--tests` makes the tests fewer.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
DETECTION = {'mmdet'}
NO_MMSEG = {'mmsegmentation', 'ftfy', 'regex'}
# Where only these are pinned, everything else is as new as the interpreter allows.
TOOLBOXES = {'mmcv-lite', 'mmengine', 'mmpretrain', 'mmsegmentation', 'mmdet'}
TORCH = {'torch', 'torchvision'}
# A config of each toolbox, and what ends its training after two iterations.
TRAININGS = {
    'mmpretrain': (
        'configs/classification/mdeq-tiny_1xb64_digits.py',
        ('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=128'),
    ),
    'mmseg': (
        'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py',
        ('train_cfg.max_iters=2', 'val_dataloader.dataset.indices=4'),
    ),
}
# Other tests need both toolboxes.
TESTS_OF_ONE = (
    'tests/test_installed.py',
    'tests/compat',
    'tests/deq',
    'tests/models/backbones/test_mdeq.py',
    'tests/engine/hooks/test_random_state_hook.py',
)
NO_INTERPRETER = 'no interpreter'
NOT_INSTALLED = 'not installed'


def lines_of(name: str) -> list[str]:
    """Returns the requirements of a file and of those that it includes."""
    found = []
    for line in (REQUIREMENTS / name).read_text().splitlines():
        if line.startswith('-r '):
            found += lines_of(line.removeprefix('-r '))
        elif line and not line.startswith('#'):
            found.append(line)
    return found


@dataclass(frozen=True)
class Cell:
    """An environment.

    Attributes:
        python (str): Version of the interpreter. Defaults to that of the default cell.
        file (str): What is installed, a file of ``requirements/``. Defaults to that of
            the default cell.
        without (set[str]): What of it is left out.
        pinned (set[str], optional): What of it keeps its version. Defaults to all.
        tests (tuple[str, ...]): Which tests run. Defaults to all.
    """

    python: str = '3.11'
    file: str = 'default.txt'
    without: frozenset[str] = frozenset()
    pinned: frozenset[str] | None = None
    tests: tuple[str, ...] = ()

    def requirements(self) -> list[str]:
        """Returns what pip is asked for, what the tests need included."""
        found = []
        for line in (*lines_of(self.file), *lines_of('tests.txt')):
            name = re.match(r'[\w.-]+', line)[0]
            if name not in self.without:
                keep = self.pinned is None or name in self.pinned
                found.append(line if keep else name)
        return found


CELLS = {
    'default': Cell(),
    'classic': Cell(file='classic.txt'),
    'onedl': Cell(file='onedl.txt'),
    'only mmseg': Cell(
        without=frozenset({'mmpretrain'} | DETECTION), tests=TESTS_OF_ONE
    ),
    'only mmpretrain': Cell(
        without=frozenset(NO_MMSEG | DETECTION), tests=TESTS_OF_ONE
    ),
    'newest torch': Cell(pinned=frozenset(TOOLBOXES)),
    'Python 3.10': Cell(python='3.10', pinned=frozenset(TOOLBOXES | TORCH)),
    'Python 3.12': Cell(python='3.12'),
    'Python 3.13': Cell(python='3.13'),
}


@dataclass
class Result:
    """What came out of a cell."""

    name: str
    python: str
    versions: str = ''
    tests: str = ''
    trainings: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def is_good(self) -> bool:
        """Tells whether nothing failed. Without an interpreter nothing was tried."""
        if self.tests == NO_INTERPRETER:
            return True
        passed = re.fullmatch(r'\d+ passed(, \d+ skipped)?', self.tests) is not None
        return passed and 'no' not in self.trainings.values()


def find_interpreter(version: str) -> str | None:
    """Returns an interpreter of this version that runs, None if there is none."""
    name = f'python{version}'
    pyenv = sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/{name}'))
    for candidate in filter(None, [shutil.which(name), *map(str, pyenv)]):
        shown = run(candidate, '--version', check=False)
        if shown.returncode == 0 and f' {version}.' in shown.stdout:
            return candidate
    return None


def run(*command: object, check: bool = True, **kwargs: object):
    """Runs a command with both kinds of output in one text."""
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run([*map(str, command)], check=check, **settings, **kwargs)


def install(cell: Cell, python: str, folder: Path) -> Path:
    """Makes the environment and returns its interpreter."""
    run(python, '-m', 'venv', folder / 'venv')
    inside = folder / 'venv/bin/python'
    pip = (inside, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check')
    environ = {**os.environ, 'PATH': f'{inside.parent}{os.pathsep}{os.environ["PATH"]}'}
    if cell.file == 'classic.txt':
        run(*pip, '-r', REQUIREMENTS / 'classic-build.txt')
    run(*pip, *cell.requirements())
    if cell.file == 'classic.txt':
        mmcv = ('-r', REQUIREMENTS / 'classic-mmcv.txt')
        run(*pip, '--no-build-isolation', *mmcv, env=environ)
    run(*pip, '--no-deps', '--editable', ROOT)
    return inside


def summary(output: str) -> str:
    """Returns the counts of the last line of pytest."""
    last = output.strip().splitlines()[-1]
    return ', '.join(re.findall(r'\d+ (?:failed|passed|skipped|errors?)', last)) or last


def train(python: Path, folder: Path, name: str) -> str:
    """Trains a toolbox for two iterations; says yes, no or that it is not there."""
    probe = f'import importlib.util as i, sys; sys.exit(not i.find_spec({name!r}))'
    if run(python, '-c', probe, check=False).returncode:
        return NOT_INSTALLED
    config, options = TRAININGS[name]
    done = run(
        *(python, ROOT / 'tools/train.py', ROOT / config),
        *('--work-dir', folder / name, '--cfg-options', *options),
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        check=False,
    )
    if done.returncode:
        print(done.stdout[-3000:])
    return 'no' if done.returncode else 'yes'


def versions(python: Path) -> str:
    """Returns what the environment has of torch, numpy and the toolboxes."""
    listed = run(python, '-m', 'pip', 'list', '--format', 'freeze').stdout
    names = r'(?:onedl-)?mm(?:engine|cv|cv-lite|segmentation|pretrain)|torch|numpy'
    found = re.findall(rf'^({names})==(\S+)', listed, re.MULTILINE)
    return ', '.join(f'{name} {number}' for name, number in found)


def try_cell(name: str, tests: Sequence[str], log: Path) -> Result:
    """Makes the environment of a cell, runs tests and trainings, and deletes it."""
    cell = CELLS[name]
    begin = time.monotonic()
    python = find_interpreter(cell.python)
    if python is None:
        return Result(name, cell.python, tests=NO_INTERPRETER)
    with tempfile.TemporaryDirectory(prefix='installs-') as temporary:
        folder = Path(temporary)
        try:
            inside = install(cell, python, folder)
        except subprocess.CalledProcessError as error:
            log.write_text(error.stdout)
            return Result(name, cell.python, tests='cannot be installed')
        done = run(
            *(inside, '-m', 'pytest', '-q', '-p', 'no:time_limit'),
            *('-m', 'versions and not slow', *(tests or cell.tests)),
            cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            check=False,
        )
        log.write_text(done.stdout)
        run(
            inside, ROOT / 'tools/dataset_converters/digits.py', cwd=folder, check=False
        )
        return Result(
            name,
            cell.python,
            versions(inside),
            summary(done.stdout),
            {toolbox: train(inside, folder, toolbox) for toolbox in TRAININGS},
            time.monotonic() - begin,
        )


def table(results: Sequence[Result]) -> str:
    """Returns what came out in Markdown."""
    lines = [
        f'Tried on {date.today():%Y-%m-%d}.\n',
        '| cell | Python | tests | mmpretrain trains | mmseg trains | minutes |',
        '|---|---|---|---|---|---:|',
    ]
    for result in results:
        trained = [result.trainings.get(name, '') for name in TRAININGS]
        minutes = f'{result.seconds / 60:.0f}'
        row = (result.name, result.python, result.tests, *trained, minutes)
        lines.append('| ' + ' | '.join(row) + ' |')
    versions = [f'- {one.name}: {one.versions}' for one in results if one.versions]
    return '\n'.join([*lines, '', *versions])


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the cells; returns 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', metavar='CELL', help='some cells alone')
    parser.add_argument('--tests', nargs='+', default=(), help='some tests alone')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/installs.md'))
    args = parser.parse_args(argv)
    names = args.only or list(CELLS)
    if not set(names) <= set(CELLS):
        parser.error(f'--only must be of {", ".join(CELLS)}, got {", ".join(names)}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for name in names:
        log = args.out.with_name(f'{args.out.stem}-{name.replace(" ", "-")}.log')
        results.append(try_cell(name, args.tests, log))
        # After each cell, since the next may take long.
        args.out.write_text(table(results) + '\n')
        print(f'{name}: {results[-1]}', flush=True)
    print(f'\n{table(results)}')
    return int(not all(result.is_good() for result in results))


if __name__ == '__main__':
    sys.exit(main())
