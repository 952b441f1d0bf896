"""Plain, optionally damped, fixed-point iteration."""

from __future__ import annotations

from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from .base import FixedPointSolver, History


@TASK_UTILS.register_module()
class PicardSolver(FixedPointSolver):
    """Picard iteration ``z <- z + damping * (f(z) - z)``.

    It keeps no history. Trained models often have eigenvalues near or beyond -1, at
    which the plain iteration, ``damping=1``, is slow or diverges; the default is what
    did best in a sweep over trained and random models. Where ``f`` is a contraction
    with eigenvalues of all signs, the plain iteration is faster.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        damping (float): Share of the full step that is taken, in (0, 1].
            Defaults to 0.7.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        max_evals: int = 30,
        tol: float = 1e-3,
        stop_mode: str = 'rel',
        damping: float = 0.7,
    ) -> None:
        super().__init__(max_evals, tol, stop_mode)
        if not 0 < damping <= 1:
            raise ValueError(f'damping must be in (0, 1], got {damping!r}')
        self.damping = damping

    def _advance(
        self,
        history: History,
        z: Tensor,
        fz: Tensor,
        g: Tensor,
        active: Optional[Tensor],
    ) -> Tensor:
        return fz if self.damping == 1 else torch.lerp(z, fz, self.damping, out=g)
