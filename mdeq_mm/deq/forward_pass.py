"""The record of one forward pass of an equilibrium layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import torch
from torch import Tensor

from .solvers import FixedPointFunction, ReducedFunction, Solution
from .state import StateLayout

if TYPE_CHECKING:
    from .modes import Mode

AdjointHook = Callable[[Solution], Any]


class AdjointRecord:
    """Where the adjoint solve of one forward pass leaves what it has found.

    The gradient's hook lives on the graph and keeps this object alone, not the whole
    :class:`ForwardPass`: that holds the graph, and the two would keep each other alive.

    Attributes:
        solution (Solution, optional): The solution of the adjoint system, once backward
            has found it.
    """

    def __init__(self) -> None:
        self.solution: Optional[Solution] = None
        self._hooks: list[AdjointHook] = []

    def register_hook(self, hook: AdjointHook) -> None:
        """Registers a function to be called with each solution."""
        self._hooks.append(hook)

    def report(self, solution: Solution) -> None:
        """Takes the solution of the adjoint system and calls the hooks."""
        self.solution = solution
        for hook in self._hooks:
            hook(solution)


@dataclass(eq=False)
class ForwardPass:
    """One forward pass of an :class:`EquilibriumLayer`.

    The layer makes one per call and owns it. Hooks, metrics and tools read it.

    Attributes:
        f (Callable): The function, ``(B, N)`` to ``(B, N)``. It can be called at any
            time and in any thread: dropout masks and normalised weights are those of
            this pass.
        layout (StateLayout): Packs feature maps into states and unpacks them.
        guess (Tensor): The initial guess, ``(B, N)``, with a graph to its own
            parameters if it has some. An unrolled pass does not start from it.
        mode (Mode): What the layer did, with the solver and the gradient it used.
        state (Tensor): The state the layer returns, ``(B, N)``, with a graph where
            gradients are wanted.
        solution (Solution, optional): What the solver found, None in an unrolled pass.
            Its inverse Jacobian is dropped when the pass ends.
        linearization (tuple[Tensor, Tensor], optional): What :meth:`linearize` has
            returned, None before its first call.
        reduced (ReducedFunction, optional): ``f`` in reduced precision, with which the
            solves begin, None where they do not.
        adjoint_record (AdjointRecord): Where the gradient reports the adjoint solve.
    """

    f: FixedPointFunction
    layout: StateLayout
    guess: Tensor
    mode: Mode
    state: Tensor
    solution: Optional[Solution] = None
    linearization: Optional[tuple[Tensor, Tensor]] = None
    reduced: Optional[ReducedFunction] = None
    adjoint_record: AdjointRecord = field(default_factory=AdjointRecord)

    @property
    def adjoint(self) -> Optional[Solution]:
        """The solution of the adjoint system, None before backward has found it."""
        return self.adjoint_record.solution

    def register_adjoint_hook(self, hook: AdjointHook) -> None:
        """Registers a function for the end of the adjoint solve.

        Args:
            hook (Callable): Called in backward as ``hook(adjoint)`` with the
                :class:`Solution`. It should keep numbers alone: whatever holds on to
                the pass itself holds on to its graph.
        """
        self.adjoint_record.register_hook(hook)

    def linearize(self) -> tuple[Tensor, Tensor]:
        """Returns ``z`` and ``f(z)``, ``(B, N)``, with a graph between them.

        ``z`` is a leaf at the state of the pass, so that products with the Jacobian are
        differentiated at a fixed state. A gradient that needs them calls this at the
        solution. Later calls then get the same pair without another evaluation.
        """
        if self.linearization is None:
            with torch.enable_grad():
                z = self.state.detach().requires_grad_()
                self.linearization = z, self.f(z)
        return self.linearization


class EquilibriumOutput(NamedTuple):
    """What an :class:`EquilibriumLayer` returns.

    Attributes:
        features (tuple[Tensor, ...]): The feature maps, ``(B, *shape_i)``, in float32
            or float64.
        forward_pass (ForwardPass): How they were found.
    """

    features: tuple[Tensor, ...]
    forward_pass: ForwardPass
