"""The same work on the CPU and on an accelerator."""

import contextlib
from pathlib import Path

import mmengine.device.utils
import pytest
import torch

import mdeq_mm

from .. import pretended_accelerator

PACKAGE = str(Path(mdeq_mm.__file__).parent)


@pytest.fixture
def pretended(device):
    """Skips what a real device cannot tell."""
    if device != pretended_accelerator.NAME:
        pytest.skip('only the pretended accelerator counts')


@pytest.fixture
def reads(pretended):
    """A context that yields the reads back to the host by code of the package."""
    return lambda: pretended_accelerator.reads_back(PACKAGE)


@pytest.fixture
def same(device):
    """Compares what the accelerator has computed with what the CPU has.

    The pretended accelerator computes the same; a real one in another order, and its
    convolutions in TF32.
    """
    exact = device == pretended_accelerator.NAME
    tolerance = dict(rtol=0, atol=0) if exact else dict(rtol=1e-2, atol=1e-3)

    def check(actual, expected):
        torch.testing.assert_close(
            actual.detach().cpu(), expected.detach().cpu(), **tolerance
        )

    return check


@pytest.fixture
def default_device(monkeypatch):
    """A context within which runners and tools find a device, as they find a GPU."""

    @contextlib.contextmanager
    def use(name):
        with monkeypatch.context() as patch:
            patch.setattr(mmengine.device.utils, 'DEVICE', name)
            yield

    return use
