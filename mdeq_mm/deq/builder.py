"""Building of solvers, gradients, guesses and cells from config dicts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Optional, TypeVar, Union

from mmengine.registry import TASK_UTILS, Registry

T = TypeVar('T')


def build(
    cfg: Union[dict, T],
    base: type[T],
    argument: str,
    registry: Registry = TASK_UTILS,
    defaults: Optional[Mapping[str, Any]] = None,
) -> T:
    """Builds an object registered in one of mmengine's root registries.

    ``Registry.build`` is not used because it looks the type up in the registry of the
    default scope first, and warns where that toolbox has none.

    Args:
        cfg (dict or object): Config with the key ``type``, or an object that is built
            already.
        base (type): What the result must be an instance of.
        argument (str): Name of the argument the config was given for; errors name it.
        registry (Registry): Where the type is registered. Defaults to ``TASK_UTILS``.
        defaults (Mapping, optional): Arguments that the class gets if it takes them and
            the config does not name them. Defaults to None.

    Raises:
        TypeError: If ``cfg`` is neither a config nor a ``base``, or has unknown keys.
        ValueError: If the type is not registered, or is not a ``base``.
    """
    if isinstance(cfg, base):
        return cfg
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(
            f"{argument} must be a {base.__name__} or a dict with the key 'type', "
            f'got {cfg!r}'
        )
    kwargs = dict(cfg)
    kind = kwargs.pop('type')
    cls = registry.get(kind) if isinstance(kind, str) else kind
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        allowed = sorted(
            name
            for name, registered in registry.module_dict.items()
            if inspect.isclass(registered) and issubclass(registered, base)
        )
        raise ValueError(
            f'{argument}: unknown {base.__name__} type {kind!r}, '
            f'allowed are {", ".join(allowed)}'
        )
    parameters = inspect.signature(cls).parameters
    unknown = sorted(set(kwargs) - set(parameters))
    if unknown:
        raise TypeError(
            f'{argument}: {cls.__name__} has no argument {", ".join(unknown)}, '
            f'allowed are {", ".join(parameters)}'
        )
    for name, value in (defaults or {}).items():
        if name in parameters:
            kwargs.setdefault(name, value)
    return cls(**kwargs)
