"""What holds for the checks of arguments, whatever they are given."""

import math

from hypothesis import strategies as st

from mdeq_mm.deq.checks import check_choice, check_int, check_number

from ..properties import holds

NUMBERS = st.one_of(st.integers(-5, 5), st.floats(-5, 5), st.floats())
ANYTHING = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=3), st.complex_numbers()
)
BOUNDS = st.one_of(st.none(), st.integers(-4, 4), st.floats(-4, 4))


def message_of(check, *args, **kwargs):
    """Returns what a check says of a value, None if it is content."""
    try:
        check(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return None


@holds(100, value=ANYTHING, least=st.integers(-3, 3), optional=st.booleans())
def test_int(value, least, optional):
    right = (type(value) is int and value >= least) or (optional and value is None)
    message = message_of(check_int, 'memory', value, least, optional)
    if right:
        assert message is None
    else:
        assert message.startswith(f'memory must be an integer of at least {least}')
        assert message.endswith(f'got {value!r}')
        assert ('or None' in message) == optional


@holds(
    200,
    value=ANYTHING,
    lower=BOUNDS,
    upper=BOUNDS,
    closed=st.tuples(st.booleans(), st.booleans()),
    optional=st.booleans(),
)
def test_number(value, lower, upper, closed, optional):
    bounds = {
        'least' if closed[0] else 'above': lower,
        'most' if closed[1] else 'below': upper,
    }
    right = type(value) in (int, float) and math.isfinite(value)
    if right and lower is not None:
        right = value > lower or (closed[0] and value == lower)
    if right and upper is not None:
        right = value < upper or (closed[1] and value == upper)
    right = right or (optional and value is None)
    message = message_of(check_number, 'tol', value, optional=optional, **bounds)
    if right:
        assert message is None
    else:
        assert message.startswith('tol must be a')
        assert message.endswith(f'got {value!r}')
        for bound in (lower, upper):
            assert bound is None or bound == 0 or str(bound) in message
        assert ('or None' in message) == optional


@holds(50, value=ANYTHING, choices=st.lists(ANYTHING, max_size=3).map(tuple))
def test_choice(value, choices):
    message = message_of(check_choice, 'stop_mode', value, choices)
    if value in choices:
        assert message is None
    else:
        assert message == f'stop_mode must be one of {choices}, got {value!r}'
