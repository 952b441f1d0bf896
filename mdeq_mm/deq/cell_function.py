"""A frozen cell as a function of the packed state alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor

from .autocast import autocast_dtype, capture_autocast
from .cell import Cell, Frozen
from .compile import CellCompiler
from .solvers import ReducedFunction
from .state import StateLayout

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class CellFunction:
    """``f`` of one forward pass: maps a state ``(B, N)`` to a state ``(B, N)``.

    It can be called at any time and in any thread. What the parts of the cell hold, and
    what autocast does, are as they were when the pass began.

    Attributes:
        cell (Cell): The cell.
        injections (Sequence[Tensor]): The injections, ``(B, *shape_i)``.
        layout (StateLayout): Layout of the state.
        frozen (Frozen): What the parts of the cell hold.
        autocast (Callable): Makes the context in which autocast does as it did.
        dtype (torch.dtype): What the cell is given and what the layer returns: float32
            or float64, or half precision where the parameters are in it and autocast is
            off.
        compiler (CellCompiler, optional): Compiles what autograd does not record.
    """

    cell: Cell
    injections: Sequence[Tensor]
    layout: StateLayout
    frozen: Frozen
    autocast: Callable[[], AbstractContextManager[Any]]
    dtype: torch.dtype
    compiler: Optional[CellCompiler]

    @classmethod
    def freeze(
        cls,
        cell: Cell,
        injections: Sequence[Tensor],
        layout: StateLayout,
        compiler: Optional[CellCompiler],
    ) -> CellFunction:
        """Freezes a cell for a pass that begins."""
        device, dtype = injections[0].device.type, injections[0].dtype
        if (
            dtype not in _HALF
            or autocast_dtype(device) is not None
            or all(parameter.dtype != dtype for parameter in cell.parameters())
        ):
            dtype = torch.promote_types(dtype, torch.float32)
        return cls(
            cell,
            injections,
            layout,
            cell.freeze(injections),
            capture_autocast(device),
            dtype,
            compiler,
        )

    def __call__(self, state: Tensor) -> Tensor:
        """Evaluates ``f`` once; the result has the dtype of the state."""
        states = self.layout.unpack(state.to(self.dtype))
        with self.autocast(), self.frozen:
            # A compiled cell cannot be differentiated twice, and each product through
            # it would compute the gradients of the weights as well.
            if self.compiler is None or torch.is_grad_enabled():
                features = self.cell(states, self.injections)
            else:
                features = self.compiler(self.cell, states, self.injections)
        return self.layout.pack(features).to(state.dtype)

    def reduced(self, dtype: torch.dtype) -> Optional[ReducedFunction]:
        """Returns the same function in reduced precision.

        The cell is evaluated under autocast. What is the same in all evaluations is
        cast once, here, and without a graph: injections and normalised weights.

        Args:
            dtype (torch.dtype): The dtype that autocast computes in.

        Returns:
            ReducedFunction, optional: The function; None where this one is in reduced
            precision already, by autocast or because the parameters are.

        Raises:
            ValueError: If the injections are in float64.
        """
        device = self.injections[0].device.type
        if self.dtype == torch.float64:
            raise ValueError(
                'evaluation_dtype must be None for a model in float64, whose weights '
                f'autocast leaves alone, got {str(dtype)[6:]!r}'
            )
        with self.autocast():
            if self.dtype in _HALF or autocast_dtype(device) is not None:
                return None
        function = replace(
            self,
            injections=[_cast(x.detach(), dtype) for x in self.injections],
            frozen=self.frozen.reduce(dtype),
            # Where autocast is switched off around, its casts would outlive a solve,
            # and a change of the weights.
            autocast=partial(torch.autocast, device, dtype, cache_enabled=False),
            dtype=dtype,
        )
        return ReducedFunction(function, torch.finfo(dtype).eps, function.restrict)

    def restrict(self, rows: Tensor) -> CellFunction:
        """Returns the function of some samples of the batch.

        Args:
            rows (Tensor): Numbers of the samples, int64, ``(b,)``.
        """
        return replace(
            self,
            injections=[_select(injection, rows) for injection in self.injections],
            frozen=self.frozen.select(rows),
        )


def _cast(injection: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts an injection, without writing out what is expanded over the batch."""
    if injection.stride(0) == 0 and len(injection) > 0:
        return injection[:1].to(dtype).expand(injection.shape)
    return injection.to(dtype)


def _select(injection: Tensor, rows: Tensor) -> Tensor:
    """Takes some samples, without writing out what is expanded over the batch."""
    return injection[: len(rows)] if injection.stride(0) == 0 else injection[rows]
