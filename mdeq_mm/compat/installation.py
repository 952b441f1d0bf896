"""What must be in place before toolboxes and configs: missing ops, missing names."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from mmengine.config.utils import MODULE2PACKAGE

from .torchvision_ops import OPS


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
        # ops. One without a loader tells it that there are none. OneDL's believes in
        # them all the same, which does no harm: it only imports classes then.
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


def stand_in_for_missing_names() -> None:
    """Lets ``_base_ = ['mmseg::…']`` find a toolbox that was published by another name.

    mmengine looks for the distribution ``mmsegmentation`` and, where there is none, for
    a module of that name. OneDL calls its distribution ``onedl-mmsegmentation``, so its
    mmengine finds neither. The stand-in is an empty module of the missing name. It says
    that it lies where mmseg does. With OpenMMLab's packages this does nothing.
    """
    for module, name in MODULE2PACKAGE.items():
        if module == name or _is_there(name):
            continue
        spec = importlib.util.find_spec(module)
        if spec is not None:
            stand_in = ModuleType(name)
            stand_in.__spec__ = ModuleSpec(name, loader=None, origin=spec.origin)
            sys.modules[name] = stand_in


def _is_there(name: str) -> bool:
    """Tells whether there is a distribution or a module of this name."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name) is not None
    return True
