"""Counting and measuring what a model does: calls, time and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Union

import torch
from torch import Tensor, nn

from ..deq import EquilibriumLayer

_STATUS = Path('/proc/self/status')
_CLEAR_REFS = Path('/proc/self/clear_refs')


@dataclass
class Work:
    """What a layer did.

    Attributes:
        evaluations (int): Evaluations of its cell.
        products (int): Vector-Jacobian products of its adjoint solves.
    """

    evaluations: int = 0
    products: int = 0


@contextmanager
def count_work(layer: EquilibriumLayer) -> Iterator[Work]:
    """Counts evaluations and products while the context lasts.

    Args:
        layer (EquilibriumLayer): The layer.

    Yields:
        Work: The counts, complete when the context ends.
    """
    work, solutions = Work(), []

    def count(*args: object) -> None:
        work.evaluations += 1

    def keep(module: nn.Module, inputs: tuple, output: tuple) -> None:
        solutions.append(output[1])

    handles = [
        layer.cell.register_forward_hook(count),
        layer.register_forward_hook(keep),
    ]
    try:
        yield work
    finally:
        for handle in handles:
            handle.remove()
        adjoints = (s.adjoint for s in solutions if s is not None)
        work.products = sum(len(a.trace) for a in adjoints if a is not None)


@contextmanager
def count_saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Counts the bytes that autograd saves, without those of the parameters.

    Memory that several saved tensors share counts once.

    Args:
        model (nn.Module): The model whose parameters do not count.

    Yields:
        list[int]: Empty; holds the bytes when the context has ended.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    total = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(storage.nbytes() for storage in storages.values()))


def timed(case: Callable[[], object], device: Union[str, torch.device]) -> float:
    """Returns the seconds a call takes: processor time on CPU, else that of CUDA."""
    if torch.device(device).type != 'cuda':
        start = time.process_time()
        case()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    case()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    device: Union[str, torch.device],
) -> dict[str, list[float]]:
    """Times several cases in turn, so that what disturbs a machine disturbs all.

    Args:
        cases (Mapping[str, Callable]): What to time; each is called once before.
        repeats (int): Rounds.
        device (str or torch.device): Where the cases compute.

    Returns:
        dict[str, list[float]]: Seconds of each case in each round.
    """
    for case in cases.values():
        case()
    seconds = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            seconds[name].append(timed(case, device))
    return seconds


def _status(key: str) -> int:
    """Returns an entry of the status of this process, in bytes."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(':')
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f'{_STATUS} has no {key}')


def peak_bytes(case: Callable[[], object], device: Union[str, torch.device]) -> int:
    """Returns how far a call raises the memory in use, at its peak.

    On CUDA that is memory of tensors. On CPU it is the resident set, which holds also
    what earlier calls have freed and the allocator has kept: use a fresh process.

    Args:
        case (Callable): What to measure.
        device (str or torch.device): Where it computes.

    Raises:
        RuntimeError: On CPU, if the system does not let a process reset its peak, as
            only Linux does.
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
