import math

import numpy as np
import pytest

from mdeq_mm.deq.checks import check_choice, check_int, check_number

NO_NUMBERS = [True, 'three', None, [1], 1j]


def refused(message, check, *args, **kwargs):
    """Checks the whole message of the error that a check raises."""
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared
        check(*args, **kwargs)
    assert str(error.value) == message


class TestInt:
    @pytest.mark.parametrize('value', [2, 5, np.int64(2)])
    def test_right(self, value):
        check_int('memory', value, 2)

    @pytest.mark.parametrize('value', [1, -3, 2.0, math.inf, *NO_NUMBERS])
    def test_wrong(self, value):
        message = f'memory must be an integer of at least 2, got {value!r}'
        refused(message, check_int, 'memory', value, 2)

    def test_optional(self):
        check_int('memory', None, 2, optional=True)
        message = 'memory must be an integer of at least 2 or None, got 1'
        refused(message, check_int, 'memory', 1, 2, optional=True)


class TestNumber:
    @pytest.mark.parametrize(
        ('value', 'bounds'),
        [
            (-3, dict()),
            (0, dict(least=0)),
            (0.0, dict(least=0)),
            (1e-9, dict(above=0)),
            (1, dict(above=0, most=1)),
            (np.float32(0.5), dict(least=0, below=1)),
        ],
    )
    def test_right(self, value, bounds):
        check_number('tol', value, **bounds)

    @pytest.mark.parametrize(
        ('value', 'bounds', 'wanted'),
        [
            (-1e-9, dict(least=0), 'a number of at least 0'),
            (0, dict(above=0), 'a positive number'),
            (2, dict(above=2), 'a number above 2'),
            (3, dict(most=2), 'a number of at most 2'),
            (2, dict(below=2), 'a number below 2'),
            (0.0, dict(above=0, most=1), 'a number in (0, 1]'),
            (1.1, dict(above=0, most=1), 'a number in (0, 1]'),
            (1, dict(least=0, below=1), 'a number in [0, 1)'),
            (-0.1, dict(least=0, below=1), 'a number in [0, 1)'),
        ],
    )
    def test_out_of_range(self, value, bounds, wanted):
        refused(
            f'tol must be {wanted}, got {value!r}', check_number, 'tol', value, **bounds
        )

    @pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, *NO_NUMBERS])
    def test_no_number(self, value):
        message = f'tol must be a finite number, got {value!r}'
        refused(message, check_number, 'tol', value)
        message = f'tol must be a number of at least 0, got {value!r}'
        refused(message, check_number, 'tol', value, least=0)

    def test_optional(self):
        check_number('tol', None, above=0, optional=True)
        message = 'tol must be a positive number or None, got 0'
        refused(message, check_number, 'tol', 0, above=0, optional=True)


class TestChoice:
    def test_right(self):
        check_choice('stop_mode', 'abs', ('abs', 'rel'))
        check_choice('history_dtype', None, (None, 'bfloat16'))

    @pytest.mark.parametrize('value', ['ABS', None, ['abs']])
    def test_wrong(self, value):
        message = f"stop_mode must be one of ('abs', 'rel'), got {value!r}"
        refused(message, check_choice, 'stop_mode', value, ('abs', 'rel'))
