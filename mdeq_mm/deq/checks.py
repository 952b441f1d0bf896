"""Checks of arguments: each names the argument and shows the offending value."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, NoReturn, Optional


def check_int(name: str, value: Any, least: int, optional: bool = False) -> None:
    """Checks that an argument is an integer which is large enough.

    Args:
        name (str): Name of the argument.
        value (object): Its value. Booleans are not taken for integers.
        least (int): The smallest value that is allowed.
        optional (bool): Whether None is allowed, too. Defaults to False.

    Raises:
        ValueError: If the value is something else.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        _refuse(name, f'an integer of at least {least}', value, optional)


def check_number(
    name: str,
    value: Any,
    *,
    least: Optional[float] = None,
    above: Optional[float] = None,
    most: Optional[float] = None,
    below: Optional[float] = None,
    optional: bool = False,
) -> None:
    """Checks that an argument is a finite number in a range.

    Args:
        name (str): Name of the argument.
        value (object): Its value. Booleans are not taken for numbers.
        least (float, optional): The smallest value that is allowed. Defaults to None,
            no bound; give either this or ``above``.
        above (float, optional): The value must be larger than this. Defaults to None.
        most (float, optional): The largest value that is allowed. Defaults to None,
            no bound; give either this or ``below``.
        below (float, optional): The value must be smaller than this. Defaults to None.
        optional (bool): Whether None is allowed, too. Defaults to False.

    Raises:
        ValueError: If the value is something else.

    Example:
        >>> check_number('damping', 1.5, above=0, most=1)
        Traceback (most recent call last):
        ...
        ValueError: damping must be a number in (0, 1], got 1.5
    """
    if value is None and optional:
        return
    finite = (
        not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    )
    if not finite or not (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        _refuse(name, _describe(least, above, most, below), value, optional)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Checks that an argument is one of a few values.

    Args:
        name (str): Name of the argument.
        value (object): Its value.
        choices (Collection): The values that are allowed.

    Raises:
        ValueError: If the value is none of them.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {choices}, got {value!r}')


def _describe(
    least: Optional[float],
    above: Optional[float],
    most: Optional[float],
    below: Optional[float],
) -> str:
    """Returns a range in words: an interval where it has two ends."""
    has_lower = least is not None or above is not None
    has_upper = most is not None or below is not None
    if has_lower and has_upper:
        start = f'({above}' if least is None else f'[{least}'
        end = f'{below})' if most is None else f'{most}]'
        return f'a number in {start}, {end}'
    if above is not None:
        return 'a positive number' if above == 0 else f'a number above {above}'
    if least is not None:
        return f'a number of at least {least}'
    if most is not None:
        return f'a number of at most {most}'
    if below is not None:
        return f'a number below {below}'
    return 'a finite number'


def _refuse(name: str, wanted: str, value: Any, optional: bool) -> NoReturn:
    alternative = ' or None' if optional else ''
    raise ValueError(f'{name} must be {wanted}{alternative}, got {value!r}')
