"""How far a call, or a backbone, raises the memory in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Union

import torch

from .backbones import Case, Subject, run_case

_STATUS = Path('/proc/self/status')
_CLEAR_REFS = Path('/proc/self/clear_refs')
# With these, glibc gives freed memory back at once. Memory that it keeps would count,
# or, if it kept it from the warm-up, would hide what the case needs.
_MALLOC = dict(MALLOC_TRIM_THRESHOLD_='65536', MALLOC_MMAP_THRESHOLD_='65536')
_WARM_UP_SIZE = 64


def peak_bytes(case: Callable[[], object], device: Union[str, torch.device]) -> int:
    """Returns how far a call raises the memory in use, at its peak.

    On CUDA that is the memory of tensors. Elsewhere it is the resident set, which also
    holds what earlier calls have freed and the allocator has kept: use a fresh process.

    Args:
        case (Callable): What to measure.
        device (str or torch.device): Where it computes.

    Raises:
        RuntimeError: On CPU, if the system does not let a process reset its peak. Only
            Linux does.
    """
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        _CLEAR_REFS.write_text('5')
        before = _status('VmHWM')
    except OSError as error:
        raise RuntimeError(
            f'the peak of the resident set is read from {_STATUS} and reset with '
            f'{_CLEAR_REFS}, as on Linux: {error}'
        ) from error
    case()
    return _status('VmHWM') - before


def measure_memory(
    subjects: Sequence[Subject],
    shape: Sequence[int],
    repeats: int,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Measures the peak memory of backbones above that of the loaded model.

    Args:
        subjects (Sequence[Subject]): The backbones.
        shape (Sequence[int]): Shape of the images, ``(B, C, H, W)``.
        repeats (int): Number of processes per case.
        device (str): Where the backbones compute. On CPU the resident set is measured,
            on CUDA the memory of tensors.

    Returns:
        dict: For each backbone and case the median of the peak in ``bytes``, and the
        peaks of all ``rounds``.
    """
    measured: dict[str, dict[str, Any]] = {s.label: {} for s in subjects}
    rounds: dict[tuple[str, str], list[int]] = {}
    for _ in range(repeats):
        for subject in subjects:
            for case in subject.cases():
                values = rounds.setdefault((subject.label, case.value), [])
                values.append(measure_in_process(subject, case, shape, device))
    for (label, name), values in rounds.items():
        measured[label][name] = dict(bytes=median(values), rounds=values)
    return measured


def measure_in_process(
    subject: Subject, case: Case, shape: Sequence[int], device: str
) -> int:
    """Returns the peak of a case in bytes, measured in a process of its own.

    The process builds the backbone, makes the images, and runs the case on small
    images, so that libraries are loaded and set up. Then it runs the case in full.

    Args:
        subject (Subject): The backbone.
        case (Case): What it does.
        shape (Sequence[int]): Shape of the images, ``(B, C, H, W)``.
        device (str): Where it computes.
    """
    arguments = (subject, case, shape, device, torch.get_num_threads())
    with _environment(_MALLOC), get_context('spawn').Pool(1) as pool:
        return pool.apply(_measure_peak, arguments)


def _measure_peak(
    subject: Subject, case: Case, shape: Sequence[int], device: str, num_threads: int
) -> int:
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    backbone = subject.build().to(device)
    images = torch.randn(*shape, device=device)
    run_case(backbone, images[..., :_WARM_UP_SIZE, :_WARM_UP_SIZE], case)
    backbone.zero_grad()
    return peak_bytes(lambda: run_case(backbone, images, case), device)


def _status(key: str) -> int:
    """Returns an entry of the status of this process, in bytes."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f'{_STATUS} has no {key}')


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables, for processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
