"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..checks import check_choice, check_int
from .base import FixedPointSolver, MethodState
from .low_rank import LowRankInverse, add_combination_, allocate, batched_dots
from .samples import choose


@dataclass
class BroydenState(MethodState):
    """What Broyden's method remembers.

    Attributes:
        steps (Tensor): The last steps, ``(B, slots, N)``; the newest takes the place of
            the oldest. A restart puts a secant pair there, see :func:`_restart`.
        core (Tensor): The core of the inverse Jacobian, ``(B, slots, slots)``, float64.
        n_steps (int): Steps that were made since the last restart.
        n_filled (int): Slots that were ever filled.
        last_residual (Tensor, optional): The last residual, ``(B, N)``, where the next
            step restarts.
    """

    steps: Tensor
    core: Tensor
    n_steps: int = 0
    n_filled: int = 0
    last_residual: Optional[Tensor] = None


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class BroydenSolver(FixedPointSolver):
    """Broyden's "good" method on ``g(z) = f(z) - z``.

    The inverse Jacobian of ``g`` starts as ``-I`` (so that the first step is Picard's)
    and gets one rank-one update per evaluation by the Sherman-Morrison formula. Each
    sample has its own. This is the solver of the MDEQ paper (section 3.2).

    Each update is made of two consecutive steps, so the steps are all that is stored
    (Kelley, "Iterative Methods for Linear and Nonlinear Equations", 1995, section 7.3).
    Here they are the basis of ``H = -I + S^T C S``. The small matrix ``C`` is kept up
    to date, so that an evaluation costs two products with ``S``. When the memory is
    full the oldest update is left out.

    With each update that is left out, ``H`` fits the remaining ones a little less.
    Where convergence is slow the method would stall. So after ``2 * memory`` updates it
    starts again from ``-I`` and the last secant pair: the last step and what it changed
    in the residual.

    It holds one buffer of ``memory + 1`` states per sample, and one more state during
    the evaluation before a restart.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        check_interval (int, optional): As in :class:`FixedPointSolver`.
            Defaults to None.
        memory (int): Rank-one updates that are kept, at least 2. Defaults to 10.
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
        check_int('memory', self.memory, 2)
        check_choice('history_dtype', self.history_dtype, (None, 'bfloat16'))

    def init(self, z0: Tensor) -> BroydenState:
        # The last evaluation is not stepped from.
        slots = min(self.memory + 1, self.max_evals - 1)
        return BroydenState(
            steps=allocate(z0, slots, self.history_dtype),
            core=z0.new_zeros(len(z0), slots, slots, dtype=torch.float64),
        )

    def step(self, state: BroydenState, z: Tensor, fz: Tensor, g: Tensor) -> Tensor:
        restarts = state.last_residual is not None
        if state.last_residual is not None:
            _restart(state, g, state.last_residual)
        number, slots = state.n_steps, state.steps.shape[1]
        slot, last, used = number % slots, (number - 1) % slots, min(number, slots)
        if number == 2 * self.memory:
            state.last_residual = g.clone()
        steps, core = state.steps[:, :used], state.core[:, :used, :used]
        scale, row = g.new_ones(len(g), 1), core.new_zeros(len(g), used)
        if used == 0:
            _write(state, slot, g, scale, row)
            return g.add_(z)
        # The products must be those of the steps as they are stored, and follow no
        # recurrence: with one that fits them but nearly the inverse runs away.
        projected, products = batched_dots(steps, g, steps[:, last])
        # The direction is d = -H g. Products out of range are left out.
        coefficients = (core @ projected.to(core.dtype).unsqueeze(2)).squeeze(2)
        coefficients = coefficients.nan_to_num(0, 0, 0)
        direction = add_combination_(g, -coefficients.to(g.dtype), steps)
        if not restarts:
            # By Sherman-Morrison the step is d / (1 - s.d / s.s) for the last step s,
            # and the update of H the step times s^T H / s.s.
            products = products.to(core.dtype)
            along = projected[:, last] - (products * coefficients).sum(1)
            squared = products[:, last].unsqueeze(1)
            denominator = 1 - along.unsqueeze(1) / squared
            # Left out where the quotient is undefined.
            regular = denominator.abs() > torch.finfo(g.dtype).eps
            scale = torch.where(regular, denominator, 1).reciprocal().to(g.dtype)
            row = (products.unsqueeze(1) @ core).squeeze(1)
            row[:, last] -= 1
            row = torch.where(regular, row / squared, 0)
        _write(state, slot, direction, scale, row)
        return torch.addcmul(z, direction, scale, out=direction)

    def inverse_jacobian(self, state: BroydenState) -> LowRankInverse:
        """Returns the approximate inverse Jacobian after the last step."""
        # A sample that had stopped before a restart uses more slots than the others.
        filled = slice(state.n_filled)
        return LowRankInverse(state.steps[:, filled], state.core[:, filled, filled])


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
    before, active = state.core, state.active
    if active is None:
        torch.mul(direction, scale, out=state.steps[:, slot])
    else:
        # A slot that is not filled yet may hold anything, NaN as well.
        is_filled = slot < state.n_filled
        old = state.steps[:, slot] if is_filled else torch.zeros_like(direction)
        step = choose(active, direction * scale, old.to(direction.dtype))
        state.steps[:, slot] = step
        state.core = before.clone()
    state.core[:, slot, : row.shape[1]] = row
    # Without its column the step that was here before is in no update any more.
    state.core[:, :, slot] = 0
    _keep_stopped(state, before)
    state.n_steps += 1
    state.n_filled = max(state.n_filled, slot + 1)


def _restart(state: BroydenState, g: Tensor, last: Tensor) -> None:
    """Starts again from the last secant pair.

    With ``s`` the last step and ``y`` what it changed in the residual, Broyden's update
    of ``-I`` is ``H = -I + (s + y) s^T / (s.y)``. The first two slots take ``y`` and
    ``s``.

    Args:
        state (BroydenState): What is started again, in place.
        g (Tensor): The residual, ``(B, N)``.
        last (Tensor): The residual before the last step, ``(B, N)``.
    """
    steps, before, active = state.steps, state.core, state.active
    s = steps[:, (state.n_steps - 1) % steps.shape[1]].to(g.dtype, copy=True)
    y = g - last
    for slot, new in enumerate((y, s)):
        old = steps[:, slot].to(g.dtype)
        steps[:, slot] = new if active is None else choose(active, new, old)
    (products,) = batched_dots(steps[:, :2], steps[:, 1].to(g.dtype))
    curvature, squared = products.to(before.dtype).unbind(1)
    regular = curvature.abs() > torch.finfo(g.dtype).eps * squared
    state.core = torch.zeros_like(before)
    state.core[:, :2, 1] = torch.where(regular, 1 / curvature, 0).unsqueeze(1)
    _keep_stopped(state, before)
    state.n_steps, state.last_residual = 2, None


def _keep_stopped(state: BroydenState, before: Tensor) -> None:
    """Leaves the inverse of a sample that has stopped as it was."""
    if state.active is not None:
        state.core = torch.where(state.active.view(-1, 1, 1), state.core, before)
