"""What every way to differentiate an equilibrium has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..forward_pass import ForwardPass


class EquilibriumGradient(ABC):
    """Turns a solution, which has no graph, into a state that autograd differentiates.

    Nothing of a pass is kept on the object. So two forward passes may come before one
    backward pass, and one object may serve several layers and threads.
    """

    @abstractmethod
    def attach(self, forward_pass: ForwardPass) -> Tensor:
        """Returns the state ``(B, N)`` with a graph to what ``f`` depends on.

        Args:
            forward_pass (ForwardPass): The pass, with its function ``f``, which
                autograd records, and its ``solution``. Its ``linearize()`` evaluates
                ``f`` at the solution with a graph.
        """
