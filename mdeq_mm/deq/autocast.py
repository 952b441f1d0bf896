"""What autocast does in the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch
from mmengine.utils import digit_version

_TAKES_DEVICE = digit_version(torch.__version__) >= digit_version('2.4')


def autocast_dtype(device: str) -> Optional[torch.dtype]:
    """Returns what autocast computes convolutions in, None where it is off.

    Args:
        device (str): Type of a device, such as ``'cpu'``.
    """
    if _TAKES_DEVICE:
        enabled = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if enabled else None
    if device == 'cpu':
        enabled, dtype = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    else:
        enabled, dtype = torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
    return dtype if enabled else None


def capture_autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Remembers what autocast does now.

    Args:
        device (str): Type of a device, such as ``'cpu'``.

    Returns:
        Callable: Makes a context, at any time and in any thread, within which autocast
        does the same.
    """
    dtype = autocast_dtype(device)

    def context() -> AbstractContextManager[Any]:
        if autocast_dtype(device) == dtype:
            return nullcontext()
        return torch.autocast(device, dtype, enabled=dtype is not None)

    return context
