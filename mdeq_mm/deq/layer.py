"""The equilibrium layer: where cell, solver and gradient meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor, nn

from .builder import build
from .gradients import EquilibriumGradient, UnrolledGradient
from .solvers import FixedPointSolver, Solution
from .state import StateLayout


class EquilibriumLayer(nn.Module):
    """Returns the joint equilibrium ``z = f(z; x)`` of several feature maps.

    Where gradients are wanted, the state comes from the gradient object (for the
    implicit gradient that is one more application of ``f``); elsewhere it is the
    solver's own.

    To observe the solves, register an ordinary forward hook on this module: its output
    holds the :class:`Solution`, and ``solution.adjoint`` that of the adjoint system
    once backward has run.

    Args:
        cell (nn.Module): ``f``, called as ``cell(states, injections) -> states`` with
            tuples of feature maps ``(B, ...)``. ``cell.freeze(injections)`` returns a
            context that keeps fixed what must not change during one solve.
        solver (FixedPointSolver or dict): Solver of the forward pass.
        gradient (EquilibriumGradient or dict): How to differentiate.
        num_layers (int): Applications of ``f`` in the shallow mode. Defaults to 5.

    Attributes:
        shallow (bool): Whether ``f`` is unrolled ``num_layers`` times from zero, in
            training and inference alike, instead of solved. Defaults to False.
    """

    def __init__(
        self,
        cell: nn.Module,
        solver: Union[FixedPointSolver, dict],
        gradient: Union[EquilibriumGradient, dict],
        num_layers: int = 5,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.solver = build(solver, FixedPointSolver, 'forward_solver')
        self.gradient = build(gradient, EquilibriumGradient, 'gradient')
        self.shallow_gradient = UnrolledGradient(num_layers)
        self.shallow = False

    def forward(
        self, injections: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], Optional[Solution]]:
        """Solves for the equilibrium of the given injections.

        Args:
            injections (Sequence[Tensor]): One ``(B, *shape_i)`` for each feature map,
                of the shape of that map.

        Returns:
            tuple: The feature maps ``(B, *shape_i)``, in float32 or float64, and the
            solution; None instead where nothing was solved for.
        """
        layout = StateLayout.of(injections)
        first = injections[0]
        z0 = torch.zeros(
            (len(first), layout.numel),
            dtype=torch.promote_types(first.dtype, torch.float32),
            device=first.device,
        )

        def f(state: Tensor) -> Tensor:
            features = self.cell(layout.unpack(state), injections)
            return layout.pack(features).to(state.dtype)

        with self.cell.freeze(injections):
            if self.shallow:
                state = self.shallow_gradient.attach(f, Solution.initial(z0))
                return layout.unpack(state), None
            differentiate = torch.is_grad_enabled() and any(
                tensor.requires_grad for tensor in (*self.parameters(), *injections)
            )
            if differentiate and not self.gradient.starts_at_equilibrium:
                state = self.gradient.attach(f, Solution.initial(z0))
                return layout.unpack(state), None
            solution = self.solver.solve(f, z0)
            state = solution.state
            if differentiate:
                # Casts of parameters that autocast cached in the solve have no graph.
                torch.clear_autocast_cache()
                state = self.gradient.attach(f, solution)
            # The solver's history must not outlive the forward pass.
            solution.inverse_jacobian = None
            return layout.unpack(state), solution
