"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from .base import FixedPointSolver
from .history import (
    History,
    add_combination_,
    allocate,
    batched_dots,
    check_dtype,
    choose,
)
from .solution import LowRankInverse


@dataclass
class _History(History):
    """The last steps, their Gram matrix, and the core of the inverse Jacobian."""

    steps: Tensor
    gram: Tensor
    core: Tensor
    n_steps: int = 0


@TASK_UTILS.register_module()
class BroydenSolver(FixedPointSolver):
    """Broyden's "good" method on ``g(z) = f(z) - z``.

    The inverse Jacobian of ``g`` starts as ``-I`` (so that the first step is Picard's)
    and gets one rank-one update an evaluation by the Sherman-Morrison formula. Each
    sample has its own. This is the solver of the MDEQ paper (section 3.2).

    Each update is made of two consecutive steps, so the steps are all that is stored
    (Kelley, "Iterative Methods for Linear and Nonlinear Equations", 1995, section 7.3).
    Here they are the basis of ``H = -I + S^T C S``; the small matrix ``C`` is kept up
    to date with the Gram matrix of the steps, so that an evaluation costs two products
    with ``S``. When the memory is full the oldest update is left out.

    It holds one buffer of ``memory + 1`` states a sample.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        memory (int): Rank-one updates that are kept, at least 1. Defaults to 10.
        history_dtype (str, optional): ``'bfloat16'`` keeps the steps in half the
            memory. Where convergence is slow it takes a few more evaluations, and more
            so with a large ``memory``. Defaults to None, the dtype of the state.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        max_evals: int = 30,
        tol: float = 1e-3,
        stop_mode: str = 'rel',
        memory: int = 10,
        history_dtype: Optional[str] = None,
    ) -> None:
        super().__init__(max_evals, tol, stop_mode)
        if not isinstance(memory, int) or memory < 1:
            raise ValueError(f'memory must be an integer of at least 1, got {memory!r}')
        self.memory = memory
        self.history_dtype = check_dtype(history_dtype)

    def _init_history(self, z0: Tensor) -> _History:
        # The last evaluation is not stepped from.
        slots = min(self.memory + 1, self.max_evals - 1)
        gram = z0.new_zeros(len(z0), slots, slots, dtype=torch.float64)
        steps = allocate(z0, slots, self.history_dtype)
        return _History(steps, gram, torch.zeros_like(gram))

    def _advance(
        self,
        history: _History,
        z: Tensor,
        fz: Tensor,
        g: Tensor,
        active: Optional[Tensor],
    ) -> Tensor:
        number, slots = history.n_steps, history.steps.shape[1]
        history.n_steps += 1
        slot, last, used = number % slots, (number - 1) % slots, min(number, slots)
        steps = history.steps[:, :used]
        gram = history.gram[:, :used, :used]
        core = history.core[:, :used, :used]
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
        self._write(history, slot, direction, scale, row, active)
        return torch.addcmul(z, direction, scale, out=direction)

    @staticmethod
    def _write(
        history: _History,
        slot: int,
        direction: Tensor,
        scale: Tensor,
        row: Tensor,
        active: Optional[Tensor],
    ) -> None:
        """Puts a step into its slot, in place of the oldest if all are taken."""
        used, before = row.shape[1], history.core
        if active is None:
            torch.mul(direction, scale, out=history.steps[:, slot])
        else:
            # A slot that is not taken yet may hold anything, NaN as well.
            old = history.steps[:, slot] if slot < used else torch.zeros_like(direction)
            step = choose(active, direction * scale, old.to(direction.dtype))
            history.steps[:, slot] = step
            history.core = before.clone()
        history.core[:, slot, :used] = row
        # Without its column the step that was here before is in no update any more.
        history.core[:, :, slot] = 0
        if active is not None:
            # The inverse of a sample that has stopped stays as it is.
            history.core = torch.where(active.view(-1, 1, 1), history.core, before)

    def _inverse_jacobian(self, history: _History) -> LowRankInverse:
        used = min(history.n_steps, history.steps.shape[1])
        return LowRankInverse(history.steps[:, :used], history.core[:, :used, :used])
