"""What an equilibrium layer does with its function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Optional

import torch
from torch import Tensor

from .checks import check_int
from .forward_pass import ForwardPass
from .gradients import EquilibriumGradient
from .solvers import FixedPointFunction, FixedPointSolver, Solution


class Mode(ABC):
    """What an :class:`EquilibriumLayer` does to get from its function to a state.

    Attributes:
        takes_reduced (bool): Whether it uses ``f`` in reduced precision where the layer
            has an ``evaluation_dtype``. Defaults to False.
    """

    takes_reduced: ClassVar[bool] = False

    @abstractmethod
    def run(
        self,
        forward_pass: ForwardPass,
        differentiate: bool,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Tensor:
        """Returns the state of a pass, ``(B, N)``.

        Args:
            forward_pass (ForwardPass): The pass. Its state is the initial guess so far.
                The mode notes the solution in it.
            differentiate (bool): Whether the state needs a graph.
            keep (Collection[int]): Numbers of the evaluations, counted from 1, whose
                iterates the solution keeps. Defaults to ().
            restrict (Callable, optional): See :meth:`FixedPointSolver.solve`. Defaults
                to None.
        """


@dataclass(frozen=True)
class Unrolled(Mode):
    """Applies ``f`` to zero ``num_layers`` times under ordinary autograd.

    That is a weight-tied network of this depth. The MDEQ paper begins its trainings
    with it (section 4). The memory of training grows with ``num_layers``.

    Args:
        num_layers (int): Applications of ``f``, at least 1. Defaults to 5.

    Raises:
        ValueError: If ``num_layers`` is out of its range.
    """

    num_layers: int = 5

    def __post_init__(self) -> None:
        check_int('num_layers', self.num_layers, 1)

    def run(
        self,
        forward_pass: ForwardPass,
        differentiate: bool,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Tensor:
        """Returns the end of the unrolled iteration; see :meth:`Mode.run`."""
        z = torch.zeros_like(forward_pass.guess, requires_grad=False)
        for _ in range(self.num_layers):
            z = forward_pass.f(z)
        return z


@dataclass(frozen=True)
class Equilibrium(Mode):
    """Solves for the equilibrium and differentiates it.

    Without gradients the state is the solver's own. Where gradients are wanted it is
    what the gradient makes of it: for :class:`ImplicitGradient` one more application of
    ``f``.

    Args:
        solver (FixedPointSolver): Solver of the forward pass.
        gradient (EquilibriumGradient): How to differentiate.
    """

    takes_reduced = True

    solver: FixedPointSolver
    gradient: EquilibriumGradient

    def run(
        self,
        forward_pass: ForwardPass,
        differentiate: bool,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Tensor:
        """Returns the equilibrium; see :meth:`Mode.run`."""
        if differentiate and self.solver.returns != 'iterate':
            # The gradient evaluates f at the iterate itself, with a graph.
            solver = replace(self.solver, returns='iterate')
            mode = replace(self, solver=solver)
            return mode.run(forward_pass, differentiate, keep, restrict)
        solution = self.solve(forward_pass, keep, restrict)
        forward_pass.solution = solution
        forward_pass.state = state = solution.state
        if differentiate:
            # Autocast keeps its casts of parameters. Older versions of torch (2.1, not
            # 2.11) keep those of the solve without a graph, too. The parameters would
            # then get no gradient from the evaluation that follows.
            torch.clear_autocast_cache()
            state = self.gradient.attach(forward_pass)
        # The solver's history must not outlive the forward pass, unless the gradient
        # holds on to it.
        forward_pass.solution = replace(solution, inverse_jacobian=None)
        return state

    def solve(
        self,
        forward_pass: ForwardPass,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Solution:
        """Solves from the guess of a pass, without a graph.

        Args:
            forward_pass (ForwardPass): The pass.
            keep (Collection[int]): See :meth:`FixedPointSolver.solve`. Defaults to ().
            restrict (Callable, optional): See :meth:`FixedPointSolver.solve`. Defaults
                to None.
        """
        return self.solver.solve(
            forward_pass.f,
            forward_pass.guess.detach(),
            keep=keep,
            restrict=restrict,
            reduced=forward_pass.reduced,
        )
