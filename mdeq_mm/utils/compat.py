"""What has to be in place before the toolboxes are imported or load a checkpoint."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Callable, NoReturn

import mmengine
import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

_REQUIRED = {'torch': '2.1.0', 'mmengine': '0.10.0', 'mmcv': '2.0.0'}


def check_versions() -> None:
    """Checks the installed versions of torch, mmengine and mmcv.

    Raises:
        ImportError: If one of them is older than needed.
    """
    import mmcv

    for module in (torch, mmengine, mmcv):
        name, needed = module.__name__, _REQUIRED[module.__name__]
        if digit_version(module.__version__) < digit_version(needed):
            raise ImportError(
                f'mdeq_mm needs {name}>={needed}, found {module.__version__}'
            )


class _MissingOps(ModuleType):
    """Stands for ``mmcv._ext``: every op exists, and says at use what is missing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # A specification without a loader: asked for the ops, mmengine finds none.
        self.__spec__ = ModuleSpec(name, loader=None)

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise ImportError(
                f'the compiled op {name!r} is not part of mmcv-lite: '
                'install mmcv instead of mmcv-lite to use it'
            )

        return missing


def stand_in_for_missing_ops() -> None:
    """Lets mmseg be imported with ``mmcv-lite``, which has no compiled ops.

    mmseg imports ``mmcv.ops`` whether or not a model needs a compiled op. With the
    stand-in only the use of such an op fails. With the full mmcv nothing is done.
    """
    name = 'mmcv._ext'
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = _MissingOps(name)


def _history_buffer_attribute(owner: Any, name: str) -> Any:
    """Answers as ``getattr``, for :class:`HistoryBuffer` alone."""
    if owner is not HistoryBuffer:
        raise UnpicklingError(f'a checkpoint may not read {name!r} of {owner!r}')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Lets torch >= 2.6 load the training checkpoints of mmengine.

    Since 2.6 ``torch.load`` admits only classes on a list. mmengine puts log histories
    into its checkpoints, with numpy arrays and the names of their own methods; those,
    and nothing more, are added to the list.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return
    multiarray = getattr(np, '_core', None) or np.core
    multiarray = multiarray.multiarray
    allowed = [
        HistoryBuffer,
        (_history_buffer_attribute, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    ]
    # A checkpoint may come from numpy 1 or numpy 2, which name this module differently.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed.append((multiarray._reconstruct, f'{module}._reconstruct'))
        allowed.append((multiarray.scalar, f'{module}.scalar'))
    torch.serialization.add_safe_globals(allowed)
