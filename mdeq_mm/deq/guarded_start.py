"""A start from the initial guess that looks first whether the guess is any good."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from .checks import check_number
from .forward_pass import ForwardPass
from .modes import Equilibrium
from .solvers import FixedPointFunction, Solution
from .solvers.loop import measure


@dataclass(frozen=True)
class GuardedStart(Equilibrium):
    """Solves from the initial guess, or from zero where the guess is a bad start.

    The first evaluation decides. Its relative residual ``||f(z) - z|| / ||f(z)||`` is
    compared with that of a start from zero, which is always 1. A sample whose residual
    is above ``limit``, or is no number, starts from zero. Its first evaluation was in
    vain, so that it may take one more than ``max_evals``, and finds exactly what it
    finds from zero. The other samples lose nothing: the evaluation is the first one of
    their solve.

    With :class:`PreviousGuess` it starts anew at the cuts of a video.

    Args:
        solver (FixedPointSolver): Solver of the forward pass.
        gradient (EquilibriumGradient): How to differentiate.
        limit (float): The largest relative residual of a good start, above 0. Defaults
            to 0.5.

    Raises:
        ValueError: If ``limit`` is out of its range.
    """

    limit: float = 0.5

    def __post_init__(self) -> None:
        check_number('limit', self.limit, above=0)

    def solve(
        self,
        forward_pass: ForwardPass,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Solution:
        """Solves from the better start; see :meth:`Equilibrium.solve`.

        The guess of the pass becomes zero for the samples that start from zero. Their
        ``n_evals`` counts the evaluation in vain, and their ``trace`` is that of the
        solve from zero.
        """
        guess = forward_pass.guess.detach()
        if not guess.any():
            return super().solve(forward_pass, keep, restrict)
        f, reduced = forward_pass.f, forward_pass.reduced
        with torch.no_grad():
            fz = f(guess) if reduced is None else reduced.f(guess)
            with torch.autocast(guess.device.type, enabled=False):
                fz = fz.to(guess.dtype)
                is_good = measure(fz - guess, fz, 'rel') <= self.limit
        if is_good.all():
            if reduced is None:
                f = _known_at_first(f, fz)
            else:
                reduced = replace(reduced, f=_known_at_first(reduced.f, fz))
            return self.solver.solve(
                f, guess, keep=keep, restrict=restrict, reduced=reduced
            )
        forward_pass.guess = forward_pass.guess.where(
            is_good[:, None], torch.zeros_like(guess)
        )
        solution = super().solve(forward_pass, keep, restrict)
        n_reduced = solution.n_reduced
        return replace(
            solution,
            n_evals=solution.n_evals + ~is_good,
            n_reduced=None if n_reduced is None else n_reduced + ~is_good,
        )


def _known_at_first(f: FixedPointFunction, fz: Tensor) -> FixedPointFunction:
    """Returns ``f``, whose first value is known and is let go of once it is used."""
    known = [fz]

    def call(z: Tensor) -> Tensor:
        return known.pop() if known else f(z)

    return call
