"""The function of a solve in reduced precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from torch import Tensor

FixedPointFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class ReducedFunction:
    """``f`` in reduced precision, with which a solve begins because it is cheap.

    The rounding errors of ``f(z)`` are assumed to be at most ``resolution`` times
    ``||f(z)||``. So a residual is known up to that. Each sample is evaluated in reduced
    precision

    - until its residual plus the resolution is within the tolerance: then it has
      converged, and needs no evaluation in full precision;
    - or until its residual is at most twice the resolution, if the tolerance is, too;
      or has not fallen for five evaluations, or is no number. Then it goes on in full
      precision.

    It goes on from its best state, with nothing else of what the method remembers. The
    difference of a residual in full precision and one in reduced precision would be
    mostly rounding errors, which Anderson's and Broyden's methods would take for what
    ``f`` does. It keeps its budget: the evaluations in both precisions are at most
    ``max_evals``. A sample that goes on waits until all others have come as far, so a
    solve may call the two functions more than ``max_evals`` times in all, each of them
    at most so often.

    Attributes:
        f (Callable): Maps a state ``(B, N)`` to a state ``(B, N)``.
        resolution (float): See above, positive.
        restrict (Callable, optional): As for :meth:`FixedPointSolver.solve`; needed
            where the solve gets one. Defaults to None.
    """

    f: FixedPointFunction
    resolution: float
    restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None
