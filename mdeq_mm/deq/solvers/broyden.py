"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..checks import check_choice, check_int
from .base import FixedPointSolver, MethodState
from .loop import choose
from .low_rank import LowRankInverse, add_combination_, allocate, batched_dots


@dataclass
class BroydenState(MethodState):
    """What Broyden's method remembers.

    Attributes:
        steps (Tensor): The last steps, ``(B, slots, N)``; the newest takes the place of
            the oldest.
        gram (Tensor): Their Gram matrix, ``(B, slots, slots)``, float64.
        core (Tensor): The core of the inverse Jacobian, ``(B, slots, slots)``, float64.
        n_steps (int): Steps that were made.
    """

    steps: Tensor
    gram: Tensor
    core: Tensor
    n_steps: int = 0


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class BroydenSolver(FixedPointSolver):
    """Broyden's "good" method on ``g(z) = f(z) - z``.

    The inverse Jacobian of ``g`` starts as ``-I`` (so that the first step is Picard's)
    and gets one rank-one update per evaluation by the Sherman-Morrison formula. Each
    sample has its own. This is the solver of the MDEQ paper (section 3.2).

    Each update is made of two consecutive steps, so the steps are all that is stored
    (Kelley, "Iterative Methods for Linear and Nonlinear Equations", 1995, section 7.3).
    Here they are the basis of ``H = -I + S^T C S``; the small matrix ``C`` is kept up
    to date with the Gram matrix of the steps, so that an evaluation costs two products
    with ``S``. When the memory is full the oldest update is left out.

    It holds one buffer of ``memory + 1`` states per sample.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        check_interval (int, optional): As in :class:`FixedPointSolver`.
            Defaults to None.
        memory (int): Rank-one updates that are kept, at least 1. Defaults to 10.
        history_dtype (str, optional): ``'bfloat16'`` keeps the steps in half the
            memory. Where convergence is slow it takes a few more evaluations, and more
            so with a large ``memory``. Defaults to None, the dtype of the state.

    Raises:
        ValueError: If an argument is out of its range.
    """

    memory: int = 10
    history_dtype: Optional[str] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int('memory', self.memory, 1)
        check_choice('history_dtype', self.history_dtype, (None, 'bfloat16'))

    def init(self, z0: Tensor) -> BroydenState:
        # The last evaluation is not stepped from.
        slots = min(self.memory + 1, self.max_evals - 1)
        gram = z0.new_zeros(len(z0), slots, slots, dtype=torch.float64)
        steps = allocate(z0, slots, self.history_dtype)
        return BroydenState(steps, gram, torch.zeros_like(gram))

    def step(self, state: BroydenState, z: Tensor, fz: Tensor, g: Tensor) -> Tensor:
        number, slots = state.n_steps, state.steps.shape[1]
        state.n_steps += 1
        slot, last, used = number % slots, (number - 1) % slots, min(number, slots)
        steps = state.steps[:, :used]
        gram = state.gram[:, :used, :used]
        core = state.core[:, :used, :used]
        if number == 0:
            direction, scale = g, g.new_ones(len(g), 1)
            row = gram.new_empty(len(g), 0)
        else:
            # The Gram matrix must be that of the steps as they are stored, and no
            # recurrence: with one that fits them but nearly the inverse runs away.
            projected, products = batched_dots(steps, g, steps[:, last])
            gram[:, last] = gram[:, :, last] = products.to(gram.dtype)
            # d = -H g; then, by Sherman-Morrison, the step is d / (1 - s.d / s.s) for
            # the last step s, and the update of H the step times s^T H / s.s.
            coefficients = (core @ projected.to(core.dtype).unsqueeze(2)).squeeze(2)
            direction = add_combination_(g, -coefficients.to(g.dtype), steps)
            along = projected[:, last] - (gram[:, last] * coefficients).sum(1)
            squared = gram[:, last, last].unsqueeze(1)
            denominator = 1 - along.unsqueeze(1) / squared
            # Left out where the quotient is undefined.
            regular = denominator.abs() > torch.finfo(g.dtype).eps
            scale = torch.where(regular, denominator, 1).reciprocal().to(g.dtype)
            row = (gram[:, last].unsqueeze(1) @ core).squeeze(1)
            row[:, last] -= 1
            row = torch.where(regular, row / squared, 0)
        _write(state, slot, direction, scale, row)
        return torch.addcmul(z, direction, scale, out=direction)

    def inverse_jacobian(self, state: BroydenState) -> LowRankInverse:
        """Returns the approximate inverse Jacobian after the last step."""
        used = min(state.n_steps, state.steps.shape[1])
        return LowRankInverse(state.steps[:, :used], state.core[:, :used, :used])


def _write(
    state: BroydenState, slot: int, direction: Tensor, scale: Tensor, row: Tensor
) -> None:
    """Puts a step into its slot, in place of the oldest if all are taken.

    Args:
        state (BroydenState): Where to write.
        slot (int): Number of the slot.
        direction (Tensor): Direction of the step, ``(B, N)``.
        scale (Tensor): By what to multiply it, ``(B, 1)``.
        row (Tensor): The new row of the core, as far as slots are taken, ``(B, used)``.
    """
    used, before, active = row.shape[1], state.core, state.active
    if active is None:
        torch.mul(direction, scale, out=state.steps[:, slot])
    else:
        # A slot that is not taken yet may hold anything, NaN as well.
        old = state.steps[:, slot] if slot < used else torch.zeros_like(direction)
        step = choose(active, direction * scale, old.to(direction.dtype))
        state.steps[:, slot] = step
        state.core = before.clone()
    state.core[:, slot, :used] = row
    # Without its column the step that was here before is in no update any more.
    state.core[:, :, slot] = 0
    if active is not None:
        # The inverse of a sample that has stopped stays as it is.
        state.core = torch.where(active.view(-1, 1, 1), state.core, before)
