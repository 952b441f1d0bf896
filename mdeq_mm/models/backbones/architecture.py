"""Which cell the arguments of a backbone describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Union

from mmengine.registry import MODELS

from ...deq import Cell
from ...deq.builder import build
from ...deq.checks import check_choice


def make_cell(
    arch_settings: Mapping[str, dict[str, Any]],
    arch: Optional[Union[str, dict]],
    cell: Optional[Union[Cell, dict]],
    options: Mapping[str, Any],
    cfgs: Mapping[str, Any],
) -> tuple[Any, Optional[int]]:
    """Makes the cell that either ``arch`` or ``cell`` describes.

    Args:
        arch_settings (Mapping): Settings of each architecture that has a name.
        arch (str or dict, optional): Name of an architecture, or its settings. None is
            ``'small'`` unless ``cell`` is given.
        cell (Cell or dict, optional): The cell, or its config; excludes ``arch``.
        options (Mapping): Arguments of the backbone that go to the cell of ``arch``;
            what is None is left to the cell.
        cfgs (Mapping): Configs of layers for the cell of ``arch``.

    Returns:
        tuple[Cell, int or None]: The cell, and the halvings of the stem that go with
        it, None where nothing is said of them.

    Raises:
        TypeError: If a config has unknown or missing keys.
        ValueError: If an argument is out of its range or excludes another one.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if cell is not None:
        if arch is not None or options:
            raise ValueError(
                'arch, dropout and with_cp exclude cell, whose config takes them, '
                f'got cell={cell!r}, arch={arch!r} and {options}'
            )
        function = build(cell, Cell, 'cell', registry=MODELS)
        if not getattr(function, 'channels', None):
            raise TypeError(
                'cell must have an attribute channels, one number per branch, but '
                f'{type(function).__name__} has none'
            )
        return function, None
    settings: Any = 'small' if arch is None else arch
    if isinstance(settings, str):
        check_choice('arch', settings, tuple(arch_settings))
        settings = arch_settings[settings]
    if not isinstance(settings, dict) or 'channels' not in settings:
        raise TypeError(
            "arch must be a name or a dict with the key 'channels' and, if wanted, "
            f'other arguments of MultiscaleCell, got {arch!r}'
        )
    settings = dict(type='MultiscaleCell', **settings, **options)
    times = settings.pop('downsample_times', None)
    return build(settings, Cell, 'arch', registry=MODELS, defaults=cfgs), times
