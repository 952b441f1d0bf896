"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

import torch

Name = TypeVar('Name')


class Stopwatch:
    """Measures the time from a start to a stop.

    On CUDA that is the time of the device, elsewhere the processor time.

    Args:
        device (str or torch.device): Where is computed what is timed.
    """

    def __init__(self, device: Union[str, torch.device]) -> None:
        self._on_cuda = torch.device(device).type == 'cuda'
        self._begin: Any = None

    def start(self) -> None:
        """Starts."""
        if self._on_cuda:
            torch.cuda.synchronize()
        self._begin = self._now()

    def stop(self) -> float:
        """Returns the seconds since the start."""
        end = self._now()
        if not self._on_cuda:
            return end - self._begin
        torch.cuda.synchronize()
        return self._begin.elapsed_time(end) / 1000

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.process_time()
        events: Any = torch.cuda.Event
        event = events(enable_timing=True)
        event.record()
        return event


def timed(case: Callable[[], object], device: Union[str, torch.device]) -> float:
    """Returns the seconds a call takes, by a :class:`Stopwatch`.

    Args:
        case (Callable): What to time.
        device (str or torch.device): Where it computes.
    """
    watch = Stopwatch(device)
    watch.start()
    case()
    return watch.stop()


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
