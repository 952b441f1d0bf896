"""What every way to differentiate an equilibrium has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..solvers import Solution
from ..solvers.base import FixedPointFunction


class EquilibriumGradient(ABC):
    """Turns a solution, which has no graph, into a state that autograd can
    differentiate.

    Attributes:
        starts_at_equilibrium (bool): Whether :meth:`attach` continues from a solved
            equilibrium; otherwise it is given the initial state and no solve is needed.
    """

    starts_at_equilibrium = True

    @abstractmethod
    def attach(self, f: FixedPointFunction, solution: Solution) -> Tensor:
        """Returns the state ``(B, N)`` with a graph to what ``f`` depends on.

        Args:
            f (Callable): The function that was solved, recorded by autograd. It must
                compute in float32 or float64 outwardly, whatever autocast does inside.
            solution (Solution): Its solution, or the initial state.
        """
