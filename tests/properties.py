"""Tests of properties: hypothesis makes up the inputs, the same ones in every run."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

# What hypothesis notes of the source goes with the process, and not into the checkout.
_NOTES = tempfile.TemporaryDirectory(prefix='hypothesis-')
set_hypothesis_home_dir(_NOTES.name)

# Powers of two, by which numbers are multiplied without rounding: 1e-30 to 1e30.
SCALES = st.integers(-99, 99).map(lambda exponent: 2.0**exponent)
SEEDS = st.integers(0, 2**16)
BATCH_SIZES = st.sampled_from([0, 1, 2, 3, 5])


def holds(n_examples: int, **strategies: st.SearchStrategy) -> Callable:
    """Makes a test of a function that checks one example.

    Marked as slow there is a second one, with four times as many examples. None of them
    is kept: a failure prints its example, which the next run finds again.

    Args:
        n_examples (int): How many examples the fast test tries.
        **strategies (SearchStrategy): What to give to the function by keyword. Its
            other arguments are fixtures.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize(
            'times',
            [
                pytest.param(1, id='some'),
                pytest.param(4, id='many', marks=pytest.mark.slow),
            ],
        )
        def test(times: int, **fixtures: Any) -> None:
            @settings(
                max_examples=n_examples * times,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            )
            @given(st.fixed_dictionaries(strategies))
            def run(example: dict[str, Any]) -> None:
                check(**example, **fixtures)

            run()

        own = inspect.signature(check)
        times = inspect.Parameter('times', inspect.Parameter.POSITIONAL_OR_KEYWORD)
        fixtures = [p for name, p in own.parameters.items() if name not in strategies]
        test.__signature__ = own.replace(parameters=[*fixtures, times])
        test.__name__, test.__doc__ = check.__name__, check.__doc__
        test.__module__, test.__qualname__ = check.__module__, check.__qualname__
        test.pytestmark += getattr(check, 'pytestmark', [])
        return test

    return decorate


def generator_of(seed: int) -> torch.Generator:
    """Returns a generator of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


STRIDES = st.sampled_from(['contiguous', 'transposed', 'sliced'])


def restride(x: torch.Tensor, how: str) -> torch.Tensor:
    """Returns the same numbers, placed otherwise in memory.

    Args:
        x (Tensor): ``(B, ...)``.
        how (str): A choice of ``STRIDES``, or ``'channels last'`` for four dimensions.
    """
    if how == 'transposed':
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == 'sliced':
        room = x.new_full([2 * size + 1 for size in x.shape], torch.nan)
        part = room[tuple(slice(1, None, 2) for _ in x.shape)]
        return part.copy_(x)
    if how == 'channels last':
        return x.to(memory_format=torch.channels_last)
    return x
