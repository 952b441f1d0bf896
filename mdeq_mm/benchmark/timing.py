"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

import torch

Name = TypeVar('Name')


def timed(case: Callable[[], object], device: Union[str, torch.device]) -> float:
    """Returns the seconds a call takes.

    On CUDA that is the time of the device, elsewhere the processor time.

    Args:
        case (Callable): What to time.
        device (str or torch.device): Where it computes.
    """
    if torch.device(device).type != 'cuda':
        begin = time.process_time()
        case()
        return time.process_time() - begin
    events: Any = torch.cuda.Event
    start, end = (events(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    case()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(
    cases: Mapping[Name, Callable[[], object]],
    repeats: int,
    device: Union[str, torch.device],
) -> dict[Name, list[float]]:
    """Times several cases in turn, so that what disturbs a machine disturbs all.

    Args:
        cases (Mapping[Hashable, Callable]): What to time, by name. Each is called once
            before the first round.
        repeats (int): Number of rounds.
        device (str or torch.device): Where the cases compute.

    Returns:
        dict[Hashable, list[float]]: Seconds of each case in each round.
    """
    for case in cases.values():
        case()
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            seconds[name].append(timed(case, device))
    return seconds
