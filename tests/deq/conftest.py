import sys

import pytest


@pytest.fixture
def eager_threads():
    """Makes threads take turns as often as they can, so that races come to light."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
