"""What must be in place before the toolboxes are imported: versions and missing ops."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import mmengine
import torch
from mmengine.utils import digit_version

from .torchvision_ops import OPS

REQUIRED_VERSIONS = {'torch': '2.1.0', 'mmengine': '0.10.0', 'mmcv': '2.0.0'}


def check_versions() -> None:
    """Checks the installed versions of torch, mmengine and mmcv.

    Raises:
        ImportError: If one of them is older than needed.
    """
    import mmcv

    for module in (torch, mmengine, mmcv):
        name, needed = module.__name__, REQUIRED_VERSIONS[module.__name__]
        if digit_version(module.__version__) < digit_version(needed):
            raise ImportError(
                f'mdeq_mm needs {name}>={needed}, found {module.__version__}'
            )


class MissingOps(ModuleType):
    """Stands in for ``mmcv._ext``, the compiled ops of mmcv.

    The ops that torchvision has too are those of torchvision. It has every other op as
    well, and a call says what is missing.

    Args:
        name (str): Name of the module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # mmengine asks for the module's specification to see whether there are compiled
        # ops. One without a loader tells it that there are none.
        self.__spec__ = ModuleSpec(name, loader=None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)
        if name in OPS:
            return OPS[name]

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise ImportError(
                f'the compiled op {name!r} is not part of mmcv-lite: '
                'install mmcv instead of mmcv-lite to use it'
            )

        return missing


def stand_in_for_missing_ops() -> None:
    """Lets mmseg be imported with ``mmcv-lite``, which has no compiled ops.

    mmseg imports ``mmcv.ops`` whether or not a model needs a compiled op. With the
    stand-in only the use of such an op fails, unless torchvision has it. With the full
    mmcv this does nothing.
    """
    name = 'mmcv._ext'
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = MissingOps(name)
