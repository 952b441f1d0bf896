"""Plain backpropagation through an unrolled iteration."""

from __future__ import annotations

from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..solvers import Solution
from ..solvers.base import FixedPointFunction
from .base import EquilibriumGradient


@TASK_UTILS.register_module()
class UnrolledGradient(EquilibriumGradient):
    """Applies ``f`` to the initial state ``num_layers`` times under ordinary autograd.

    A weight-tied network of that depth: the shallow pre-training of the MDEQ paper
    (section 4). The memory grows with ``num_layers``.

    Args:
        num_layers (int): Applications of ``f``, at least 1. Defaults to 5.

    Raises:
        ValueError: If ``num_layers`` is out of its range.
    """

    starts_at_equilibrium = False

    def __init__(self, num_layers: int = 5) -> None:
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(
                f'num_layers must be an integer of at least 1, got {num_layers!r}'
            )
        self.num_layers = num_layers

    def attach(self, f: FixedPointFunction, solution: Solution) -> Tensor:
        z = solution.state
        for _ in range(self.num_layers):
            z = f(z)
        return z
