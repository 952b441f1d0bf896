"""A plugin: what takes long must be marked as slow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator

import pytest


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.begin = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        times = os.times()
        # With its children, once they have ended.
        return time.monotonic(), sum(times[:4])

    def seconds(self) -> float:
        """Returns seconds of the clock or of the processor, whichever are less.

        A busy machine stretches the clock; many threads stretch the processor time.
        """
        return min(now - then for now, then in zip(self._read(), self.begin))


def load() -> float:
    """Returns how many processes want a core of this machine, and at least 1."""
    return max(1.0, os.getloadavg()[0] / os.cpu_count())


class TimeLimit:
    """Fails a test that is not marked as slow and takes long.

    A test is measured with what is set up for it alone. A fixture that several tests
    share is measured by itself, so that it does not matter which of them comes first;
    one that takes long fails the test that comes first, if that is not marked as slow.

    Args:
        limit (float): Seconds a test or a shared fixture may take.
        stretch (Callable): Returns by how much they are stretched, since even processor
            time grows when processes take each other's caches. Defaults to the load of
            the machine.
    """

    def __init__(self, limit: float, stretch: Callable[[], float] = load) -> None:
        self.limit = limit
        self.stretch = stretch
        self._test = Stopwatch()
        self._shared: dict[str, float] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._test = Stopwatch()
        self._shared = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef
    ) -> Generator[None, object, object]:
        stopwatch, before = Stopwatch(), sum(self._shared.values())
        result = yield
        if fixturedef.scope != 'function':
            # Without the shared fixtures that it asked for while it ran.
            others = sum(self._shared.values()) - before
            name = f'The fixture {fixturedef.argname}'
            self._shared[name] = stopwatch.seconds() - others
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        measured = call.when == 'call' and report.passed
        if measured and item.get_closest_marker('slow') is None:
            alone = self._test.seconds() - sum(self._shared.values())
            for what, seconds in {'The test': alone, **self._shared}.items():
                if seconds > self.limit * self.stretch():
                    report.outcome = 'failed'
                    report.longrepr = (
                        f'{what} took {seconds:.1f} s, more than {self.limit:g} s: '
                        'make it faster, or mark the test with @pytest.mark.slow'
                    )
        return report
