"""Puts faults into a copy of the checkout, one at a time, and sees what finds them.

    python tests/mutation/run.py [--only NAME ...] [--jobs N] [--out FILE]

A fault that no test finds has survived, and a test is missing. Before the faults, the
same tests run on the copy as it is, where they must pass.

Each run of tests is a fork of this process, which has imported torch and mmengine but
nothing of the checkout. That saves most of the time.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

if __package__:
    from .mutations import MUTATIONS, Mutation
else:
    from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = 'mdeq_mm'
# What every fork needs and no mutation changes.
PRELOADED = ('torch', 'mmengine.runner', 'mmengine.hooks', 'mmcv.cnn', 'pytest')
FORK = get_context('fork')
# What tests may take: seconds of the clock, and bytes. A fault may make them hang.
TIME_LIMIT = 300.0
MEMORY_LIMIT = 8 << 30

KILLED, SURVIVED, SKIPPED, ERROR = 'killed', 'survived', 'not applicable', 'error'


@dataclass
class Run:
    """Tests on the copy, with a mutation or as it is.

    Attributes:
        name (str): That of the mutation or of the file of tests.
        tests (tuple[str]): Files of tests.
        mutation (Mutation, optional): What to put in. Defaults to None.
        status (str): How it ended. Defaults to an error.
        details (str): The test that failed first, or what went wrong.
        seconds (float): How long it took.
    """

    name: str
    tests: tuple[str, ...]
    mutation: Mutation | None = None
    status: str = ERROR
    details: str = ''
    seconds: float = 0.0

    def __str__(self) -> str:
        return f'{self.seconds:5.1f} s  {self.status:14}  {self.name}  {self.details}'


class Watcher:
    """A plugin of pytest that notes what has failed first.

    Attributes:
        failed (str): Name of the test, empty where none has failed.
        n_passed (int): Tests that have passed.
    """

    def __init__(self) -> None:
        self.failed = ''
        self.n_passed = 0

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid
        if report.passed and report.when == 'call':
            self.n_passed += 1


def mutated(mutation: Mutation, root: Path) -> str:
    """Returns the text of the file with the mutation in it.

    Raises:
        ValueError: If the text to replace is not in the file exactly once, or what
            comes out is no Python or the same program.
    """
    text = (root / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(f'{count} times in {mutation.file}: {mutation.old!r}')
    changed = text.replace(mutation.old, mutation.new)
    if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)):
        raise ValueError(f'changes nothing in {mutation.file}: {mutation.new!r}')
    return changed


def copy_checkout(root: Path, folder: Path) -> Path:
    """Copies the files that git knows or would add, and links the reference data."""
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    target = folder / 'checkout'
    for name in listed.split('\0'):
        if name and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    if (root.parent / 'shared').is_dir():
        (folder / 'shared').symlink_to((root.parent / 'shared').resolve())
    return target


def run_tests(copy: Path, run: Run, log: Path, answer: Connection) -> None:
    """Runs tests in a fork and sends how they ended."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    with log.open('w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    os.environ.update(
        PYTHONPATH=str(copy),
        PYTHONDONTWRITEBYTECODE='1',
        PYTEST_DISABLE_PLUGIN_AUTOLOAD='1',
    )
    # A cached file would be taken for a mutated one of the same second and size.
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(path for path in sys.path if not _is_ours(path))]
    watcher = Watcher()
    arguments = ['-x', '-m', 'not slow', '-p', 'no:cacheprovider', '-q']
    # The settings of pytest name its options.
    arguments += ['-p', 'pytest_timeout']
    # Others may use the processor, too.
    arguments += ['-p', 'no:time_limit', *run.tests]
    code = int(import_module('pytest').main(arguments, plugins=[watcher]))
    package = sys.modules.get(PACKAGE)
    found = Path(package.__file__ or '').parent if package else None
    if found not in (None, copy / PACKAGE):
        run.details = f'the package was imported from {found}'
    elif code == 0 and watcher.n_passed:
        run.status = SURVIVED
    elif code in (0, 5):
        run.status, run.details = SKIPPED, 'every test was skipped'
    elif code == 1 and watcher.failed:
        run.status, run.details = KILLED, watcher.failed
    else:
        run.details = f'pytest ended with {code}'
    sys.stdout.flush()
    answer.send((run.status, run.details))


def _is_ours(path: str) -> bool:
    return Path(path or '.').resolve() in (ROOT, Path(__file__).resolve().parent)


@dataclass
class Place:
    """A copy of the checkout, in which one run at a time takes place."""

    folder: Path
    copy: Path
    run: Run | None = None
    original: str = ''
    process: object = None
    answer: Connection | None = None
    begin: float = field(default_factory=time.monotonic)

    def start(self, run: Run) -> None:
        """Puts the mutation in and forks."""
        self.run, self.begin = run, time.monotonic()
        if run.mutation is not None:
            path = self.copy / run.mutation.file
            self.original = path.read_text()
            path.write_text(mutated(run.mutation, self.copy))
        self.answer, other = FORK.Pipe(duplex=False)
        log = self.folder / 'log.txt'
        self.process = FORK.Process(target=run_tests, args=(self.copy, run, log, other))
        self.process.start()
        other.close()

    def finish(self) -> Run:
        """Ends the run, waits for it, and takes the mutation out."""
        run = self.run
        run.seconds = time.monotonic() - self.begin
        try:
            if self.answer.poll():
                run.status, run.details = self.answer.recv()
            elif run.seconds > TIME_LIMIT:
                run.status = KILLED
                run.details = f'the time limit of {TIME_LIMIT:.0f} s'
            else:
                run.details = 'the process died'
        except EOFError:
            run.details = 'the process died'
        self.end()
        if run.mutation is not None:
            (self.copy / run.mutation.file).write_text(self.original)
        if run.status == ERROR:
            run.details += '\n' + (self.folder / 'log.txt').read_text()[-4000:]
        return run

    def end(self) -> None:
        """Ends the process and whatever it has started."""
        if self.run is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may not lead a group yet
        self.process.join()
        self.answer.close()
        self.run = None


def run_all(runs: Sequence[Run], root: Path, jobs: int) -> Iterator[Run]:
    """Yields the runs as they end, ``jobs`` of them at a time."""
    waiting = list(runs)[::-1]
    with tempfile.TemporaryDirectory(prefix='mutation-') as scratch:
        places = []
        for number in range(min(jobs, len(waiting))):
            folder = Path(scratch, str(number))
            places.append(Place(folder, copy_checkout(root, folder)))
        try:
            while waiting or any(place.run for place in places):
                for place in places:
                    if place.run is None and waiting:
                        place.start(waiting.pop())
                busy = [place for place in places if place.run]
                wait([place.answer for place in busy], timeout=1)
                for place in busy:
                    late = time.monotonic() - place.begin > TIME_LIMIT
                    if late or place.answer.poll() or not place.process.is_alive():
                        yield place.finish()
        finally:
            for place in places:
                place.end()


def applies(mutation: Mutation) -> str:
    """Returns why a mutation changes nothing in this environment, empty if it does."""
    if mutation.below_torch is None:
        return ''
    here = _version(import_module('torch').__version__)
    if here < _version(mutation.below_torch):
        return ''
    return f'makes a difference before torch {mutation.below_torch} alone'


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r'\d+', text)[:2])


def table(runs: Sequence[Run]) -> str:
    """Returns the results in Markdown."""
    lines = ['| kind | fault | result | by |', '|---|---|---|---|']
    for run in runs:
        mutation = run.mutation
        by = run.details.splitlines()[0] if run.details else ''
        by = f'`{by}`' if '::' in by else by
        lines.append(f'| {mutation.kind} | {run.name} | {run.status} | {by} |')
    counts = [
        f'{sum(run.status == status for run in runs)} {status}'
        for status in (KILLED, SURVIVED, SKIPPED, ERROR)
    ]
    return '\n'.join([*lines, '', f'{len(runs)} mutations: ' + ', '.join(counts)])


def main(
    argv: Sequence[str] | None = None,
    mutations: Sequence[Mutation] = MUTATIONS,
    root: Path = ROOT,
) -> int:
    """Runs the mutations; returns 0 if all that apply are killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', help='names of mutations, or of kinds')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument('--out', type=Path, help='file for the table')
    args = parser.parse_args(argv)
    known = {name for m in mutations for name in (m.name, m.kind)}
    if args.only and not set(args.only) <= known:
        parser.error(f'unknown: {", ".join(sorted(set(args.only) - known))}')
    chosen = [m for m in mutations if not args.only or {m.name, m.kind} & {*args.only}]
    for mutation in chosen:
        mutated(mutation, root)  # before any work starts

    os.environ['OMP_NUM_THREADS'] = '1'
    for module in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):
            import_module(module)
    results = [Run(m.name, m.tests, m) for m in chosen]
    for run in results:
        run.details = applies(run.mutation)
        run.status = SKIPPED if run.details else ERROR
    todo = [run for run in results if not run.details]
    files = sorted({test for run in todo for test in run.tests})
    print(f'{len(files)} files of tests without a mutation', flush=True)
    spoilt = False
    for run in run_all([Run(file, (file,)) for file in files], root, args.jobs):
        if run.status not in (SURVIVED, SKIPPED):
            spoilt = True
            print(f'without a mutation: {run}', flush=True)
    if spoilt:
        return 1
    print(f'{len(todo)} mutations', flush=True)
    for run in run_all(todo, root, args.jobs):
        print(run, flush=True)
    report = table(results)
    print(f'\n{report}')
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report + '\n')
    return int(any(run.status in (SURVIVED, ERROR) for run in results))


if __name__ == '__main__':
    sys.exit(main())
