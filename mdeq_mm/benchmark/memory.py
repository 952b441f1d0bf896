"""How far a backbone raises the memory in use, above that of the loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from ..utils.measure import peak_bytes
from .backbones import Case, Subject, run_case

# glibc then gives freed memory back at once. What it keeps would count, or, kept from
# the warm-up, not count.
_MALLOC = dict(MALLOC_TRIM_THRESHOLD_='65536', MALLOC_MMAP_THRESHOLD_='65536')
_WARM_UP_SIZE = 64


def measure_memory(
    subjects: Sequence[Subject],
    shape: Sequence[int],
    repeats: int,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Measures the peak memory of backbones, each case in processes of its own.

    A process builds the backbone, makes the images, runs the case on small images, so
    that libraries are loaded and set up, and then once in full.

    Args:
        subjects (Sequence[Subject]): The backbones.
        shape (Sequence[int]): Shape of the images, ``(B, C, H, W)``.
        repeats (int): Processes for each case.
        device (str): Where the backbones compute; on CPU the resident set is measured,
            on CUDA the memory of tensors.

    Returns:
        dict: For each backbone and case the median of the peak in ``bytes``, and those
        of all ``rounds``.
    """
    measured: dict[str, dict[str, Any]] = {s.label: {} for s in subjects}
    rounds: dict[tuple[str, str], list[int]] = {}
    for _ in range(repeats):
        for subject in subjects:
            for case in subject.cases():
                values = rounds.setdefault((subject.label, case.value), [])
                values.append(_in_process(subject, case, shape, device))
    for (label, case), values in rounds.items():
        measured[label][case] = dict(bytes=median(values), rounds=values)
    return measured


def measure_peak(
    subject: Subject, case: Case, shape: Sequence[int], device: str, num_threads: int
) -> int:
    """Returns the peak of a case in bytes; to be called in a fresh process."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    backbone = subject.build().to(device)
    images = torch.randn(*shape, device=device)
    run_case(backbone, images[..., :_WARM_UP_SIZE, :_WARM_UP_SIZE], case)
    backbone.zero_grad()
    return peak_bytes(lambda: run_case(backbone, images, case), device)


def _in_process(subject: Subject, case: Case, shape: Sequence[int], device: str) -> int:
    arguments = (subject, case, shape, device, torch.get_num_threads())
    with _environment(_MALLOC), get_context('spawn').Pool(1) as pool:
        return pool.apply(measure_peak, arguments)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables, for processes that are started meanwhile."""
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
