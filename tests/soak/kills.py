"""Trainings that are killed, resumed, and must end as if nobody had killed them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

if __package__:
    from .. import shortcuts
    from ..interrupted import write_config
    from ..isolation import load_tool, run_main
    from ..two_processes import free_port
else:
    import shortcuts  # noqa: F401
    from interrupted import write_config
    from isolation import load_tool, run_main
    from two_processes import free_port

ROOT = Path(__file__).resolve().parents[2]
N_ITERS, INTERVAL = 10, 2
# Folder in the work directory, in which a save writes before it gives names.
UNFINISHED = '.unfinished'
LAST = f'iter_{N_ITERS}.pth'
FORK = get_context('fork')
# Seconds that a training may take, and that a process may outlive the other.
TIME_LIMIT, SURVIVAL = 300.0, 60.0
# Seconds after the beginning of a save, within which the kills aimed at it fall.
AIM = 0.03


def prepare(folder: Path) -> None:
    """Writes the data sets, and imports what every training needs before it forks."""
    folder.mkdir(parents=True, exist_ok=True)
    run_main('dataset_converters/digits.py', cwd=folder)
    load_tool('train.py')
    import_module('mmseg.models')


class Training:
    """A call of ``tools/train.py`` in processes of its own.

    Args:
        folder (Path): Where the data sets are.
        work_dir (Path): Work directory.
        workers (int): Workers of the data loader.
        n_processes (int): Processes that train together.
        resume (bool): Whether to resume. Defaults to False.
    """

    def __init__(
        self,
        folder: Path,
        work_dir: Path,
        workers: int,
        n_processes: int,
        resume: bool = False,
    ) -> None:
        work_dir.mkdir(parents=True, exist_ok=True)
        config = write_config(
            folder / f'workers_{workers}.py',
            workers=workers,
            iters=N_ITERS,
            interval=INTERVAL,
            pretrain_iters=3,
        )
        arguments = [str(config), '--work-dir', str(work_dir)]
        arguments += ['--resume'] * resume
        shared = {}
        if n_processes > 1:
            arguments += ['--launcher', 'pytorch']
            shared = dict(WORLD_SIZE=str(n_processes), MASTER_ADDR='127.0.0.1')
            shared['MASTER_PORT'] = free_port()
        self.work_dir = work_dir
        name = 'resumed' if resume else 'first'
        self.logs = [work_dir / f'{name}_{rank}.log' for rank in range(n_processes)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            variables = dict(shared, RANK=str(rank), LOCAL_RANK=str(rank))
            process = FORK.Process(
                target=_train,
                args=(folder, log, variables if shared else {}, arguments),
            )
            process.start()
            self.processes.append(process)

    @property
    def runs(self) -> bool:
        """Whether a process has not ended."""
        return any(process.is_alive() for process in self.processes)

    def kill(self, ranks: Any = None) -> None:
        """Kills processes, all by default, with the workers that they have started."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            process = self.processes[rank]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()

    def wait(self, seconds: float) -> bool:
        """Waits until all have ended; kills them and returns False if it takes long."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        in_time = not self.runs
        self.kill()
        return in_time

    def finish(self) -> str:
        """Waits for the end and returns what the first process has printed.

        Raises:
            RuntimeError: If the training has failed.
        """
        in_time = self.wait(TIME_LIMIT)
        output = self.logs[0].read_text()
        codes = [process.exitcode for process in self.processes]
        if not in_time or any(codes):
            raise RuntimeError(f'ended with {codes}:\n{output[-3000:]}')
        return output


def _train(folder: Path, log: Path, variables: dict, arguments: list[str]) -> None:
    os.setsid()
    with log.open('w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # What the parent has buffered is the parent's.
    sys.stdout = os.fdopen(1, 'w', buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
    os.environ.update(variables)
    os.chdir(folder)
    load_tool('train.py').main(arguments)


def wait_for_save(training: Training, iteration: int) -> None:
    """Waits until the checkpoint of an iteration begins to be written, or the end."""
    folders = (training.work_dir, training.work_dir / UNFINISHED)
    deadline = time.monotonic() + TIME_LIMIT
    while training.runs and time.monotonic() < deadline:
        if any((folder / f'iter_{iteration}.pth').exists() for folder in folders):
            return
        time.sleep(0.0005)


@dataclass(frozen=True)
class Checkpoints:
    """What a killed training has left.

    Attributes:
        newest (int): Iteration of the newest whole checkpoint, 0 for none.
        torn (int): Files under the name of a checkpoint that cannot be loaded.
        unfinished (bool): Whether the kill has hit a save.
    """

    newest: int
    torn: int
    unfinished: bool

    @classmethod
    def of(cls, work_dir: Path) -> Checkpoints:
        iterations = [iteration_of(path) for path in work_dir.glob('iter_*.pth')]
        newest = max(filter(None, iterations), default=0)
        torn = iterations.count(None)
        last = work_dir / 'last_checkpoint'
        named = last.read_text() if last.exists() else ''
        expected = f'iter_{newest}.pth' if newest else ''
        unfinished = Path(named).name != expected or any(
            work_dir.glob(f'{UNFINISHED}/*')
        )
        return cls(newest, torn, bool(torn) or unfinished)


def iteration_of(path: Path) -> int | None:
    """Returns the iteration of a checkpoint, None if it is torn."""
    try:
        return torch.load(path, map_location='cpu')['meta']['iter']
    except Exception:  # noqa: BLE001  a torn file can raise anything
        return None


def same(actual: Any, expected: Any) -> bool:
    """Whether two parts of checkpoints are the same to the last bit."""
    if isinstance(expected, torch.Tensor):
        return isinstance(actual, torch.Tensor) and torch.equal(actual, expected)
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(
            same(actual[key], expected[key]) for key in expected
        )
    if isinstance(expected, (list, tuple)):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    return actual == expected


def result_of(work_dir: Path) -> dict[str, Any]:
    """Returns weights and optimizer at the end of a training."""
    checkpoint = torch.load(work_dir / LAST, map_location='cpu')
    return {key: checkpoint[key] for key in ('state_dict', 'optimizer')}


def run_kills(
    folder: Path, n_random: int, n_aimed: int, n_processes: int, seed: int
) -> tuple[Counter, list[str]]:
    """Kills trainings and resumes them.

    Args:
        folder (Path): Where :func:`prepare` has written the data sets.
        n_random (int): Kills at random moments of a training.
        n_aimed (int): Kills within 30 ms of the beginning of a save.
        n_processes (int): Processes that train together. Of two, every other kill at a
            random moment kills one alone.
        seed (int): Seed of the moments.

    Returns:
        tuple[Counter, list[str]]: Figures, and what went wrong.
    """
    rng = random.Random(seed)
    counts, faults = Counter(), []
    variants = (0,) if n_processes > 1 else (0, 2)
    wholes: dict[int, tuple[dict, float]] = {}
    name = f'{n_processes}_processes'
    for number, aimed in enumerate(_kinds(n_random, n_aimed)):
        workers = variants[number // 2 % len(variants)]
        if workers not in wholes:
            work_dir = folder / f'{name}_whole_{workers}'
            begin = time.monotonic()
            Training(folder, work_dir, workers, n_processes).finish()
            wholes[workers] = result_of(work_dir), time.monotonic() - begin
        expected, seconds = wholes[workers]
        work_dir = folder / f'{name}_{number}'
        training = Training(folder, work_dir, workers, n_processes)
        try:
            where = _kill(training, aimed, seconds, rng, counts)
        finally:
            training.kill()
        left = Checkpoints.of(work_dir)
        counts['kills'] += 1
        counts['in a save'] += left.unfinished
        counts['torn files'] += left.torn
        case = f'{name}, {work_dir.name}, killed {where}, {left}'
        resumed = Training(folder, work_dir, workers, n_processes, resume=True)
        found = _faults(resumed, left, expected, counts)
        faults += [f'{case}: {fault}' for fault in found]
    return counts, faults


def _kinds(n_random: int, n_aimed: int) -> Iterator[bool]:
    """Yields whether to aim: in turns, so that both meet all variants."""
    for number in range(max(n_random, n_aimed)):
        if number < n_aimed:
            yield True
        if number < n_random:
            yield False


def _kill(
    training: Training,
    aimed: bool,
    seconds: float,
    rng: random.Random,
    counts: Counter,
) -> str:
    if aimed:
        iteration = rng.randrange(INTERVAL, N_ITERS, INTERVAL)
        wait_for_save(training, iteration)
        delay = rng.uniform(0, AIM)
        time.sleep(delay)
        training.kill()
        return f'{1000 * delay:.1f} ms after save {iteration} began'
    moment = rng.uniform(0, seconds)
    time.sleep(moment)
    n_processes = len(training.processes)
    if n_processes > 1 and rng.random() < 0.5:
        victim = rng.randrange(n_processes)
        training.kill([victim])
        counts['one process alone'] += 1
        if not training.wait(SURVIVAL):
            counts['survivors that hung'] += 1
        return f'rank {victim} alone after {moment:.2f} s'
    training.kill()
    return f'after {moment:.2f} s'


def _faults(
    training: Training, left: Checkpoints, expected: dict[str, Any], counts: Counter
) -> Iterator[str]:
    """Waits for a training that was resumed, and yields what is wrong with it."""
    if left.torn:
        yield f'{left.torn} torn files under the name of a checkpoint'
    try:
        output = training.finish()
    except RuntimeError as error:
        counts['not resumed'] += 1
        yield f'not resumed: {error}'
        return
    finally:
        training.kill()
    found = re.search(r'resumed epoch: \d+, iter: (\d+)', output)
    begin = int(found[1]) if found else 0
    if begin < left.newest:
        counts['checkpoints lost'] += 1
        yield f'resumed from iteration {begin} instead of {left.newest}'
    if not same(result_of(training.work_dir), expected):
        counts['other ends'] += 1
        yield 'ended with other weights'
