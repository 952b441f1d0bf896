"""Compilation of a cell by ``torch.compile``."""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.utils import digit_version
from torch import Tensor

from .cell import Cell


class CellCompiler:
    """Evaluates a cell through ``torch.compile``.

    It is no module and does not keep the cell, so state dicts keep their keys. A copy,
    or one read from a pickle, compiles again at its first call.

    Args:
        kwargs (dict): Arguments of ``torch.compile``.

    Raises:
        RuntimeError: If torch is too old to compile a cell.
        TypeError: If there are unknown arguments.
    """

    MIN_TORCH = '2.5'

    def __init__(self, kwargs: dict) -> None:
        if digit_version(torch.__version__) < digit_version(self.MIN_TORCH):
            raise RuntimeError(
                f'compile_cell needs torch {self.MIN_TORCH} or newer, which takes the '
                f'weights of a module as inputs; this is torch {torch.__version__}'
            )
        allowed = set(inspect.signature(torch.compile).parameters) - {'model'}
        if not isinstance(kwargs, dict) or not set(kwargs) <= allowed:
            raise TypeError(
                'compile_cell must be a dict of arguments of torch.compile, '
                f'{", ".join(sorted(allowed))}, got {kwargs!r}'
            )
        self.kwargs = dict(kwargs)
        # torch.compile limits how often it compiles a code object. A copy of the code
        # gives each compiler a count of its own.
        code = _evaluate.__code__.replace()
        function = types.FunctionType(code, globals(), _evaluate.__name__)
        self._compiled = torch.compile(function, **self.kwargs)

    def __call__(
        self, cell: Cell, states: Sequence[Tensor], injections: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Evaluates the cell; see :meth:`Cell.forward`."""
        return self._compiled(cell, tuple(states), tuple(injections))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kwargs,)


def _evaluate(
    cell: Cell, states: tuple[Tensor, ...], injections: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return cell(states, injections)
