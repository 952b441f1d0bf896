"""Plain, optionally damped, fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..checks import check_number
from .base import FixedPointSolver, MethodState


@TASK_UTILS.register_module()
@dataclass(frozen=True)
class PicardSolver(FixedPointSolver):
    """Picard iteration ``z <- z + damping * (f(z) - z)``.

    It remembers nothing. Trained models often have eigenvalues near or beyond -1, at
    which the plain iteration, ``damping=1``, is slow or diverges; the default is what
    did best in a sweep over trained and random models. Where ``f`` is a contraction
    with eigenvalues of all signs, the plain iteration is faster.

    Args:
        max_evals (int): Budget of evaluations of ``f``. Defaults to 30.
        tol (float): Tolerance on the residual. Defaults to 1e-3.
        stop_mode (str): ``'abs'`` or ``'rel'``. Defaults to ``'rel'``.
        check_interval (int, optional): As in :class:`FixedPointSolver`.
            Defaults to None.
        damping (float): Share of the full step that is taken, in (0, 1].
            Defaults to 0.7.

    Raises:
        ValueError: If an argument is out of its range.
    """

    damping: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number('damping', self.damping, above=0, most=1)

    def step(self, state: MethodState, z: Tensor, fz: Tensor, g: Tensor) -> Tensor:
        return fz if self.damping == 1 else torch.lerp(z, fz, self.damping, out=g)
