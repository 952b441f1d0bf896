"""Phantom gradient: a few damped steps recorded by autograd."""

from __future__ import annotations

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..checks import check_int, check_number
from ..forward_pass import ForwardPass
from .base import EquilibriumGradient


@TASK_UTILS.register_module()
class PhantomGradient(EquilibriumGradient):
    """Unrolls ``steps`` damped iterations from the equilibrium and differentiates them.

    ``z <- z + damping * (f(z) - z)``, ``steps`` times (Geng et al., "On Training
    Implicit Models", NeurIPS 2021, unrolling-based phantom gradient). ``steps=1,
    damping=1`` is Jacobian-free backpropagation (Fung et al., AAAI 2022).
    Backward solves nothing. The memory is that of ``steps`` evaluations of ``f``.

    Args:
        steps (int): Iterations that are recorded, at least 1. Defaults to 5.
        damping (float): Share of the full step that is taken, in (0, 1].
            Defaults to 0.5.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, steps: int = 5, damping: float = 0.5) -> None:
        check_int('steps', steps, 1)
        check_number('damping', damping, above=0, most=1)
        self.steps = steps
        self.damping = damping

    def attach(self, forward_pass: ForwardPass) -> Tensor:
        """Returns the end of the damped iteration."""
        z = forward_pass.state.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                z = torch.lerp(z, forward_pass.f(z), self.damping)
        return z

    def __repr__(self) -> str:
        return f'{type(self).__name__}(steps={self.steps}, damping={self.damping})'
