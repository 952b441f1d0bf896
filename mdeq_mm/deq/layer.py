"""The equilibrium layer: where cell, solver and gradient meet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .builder import build
from .compiled import CellCompiler
from .gradients import EquilibriumGradient, UnrolledGradient
from .initial_guess import InitialGuess, zero_state
from .solvers import FixedPointSolver, Solution
from .solvers.base import FixedPointFunction
from .state import StateLayout


@dataclass
class Solve:
    """One forward pass of an :class:`EquilibriumLayer`, as its solve hooks see it.

    Attributes:
        f (Callable): The function, which may be evaluated further while the hook runs.
        layout (StateLayout): Packs and unpacks its states.
        state (Tensor): The state the layer returns, ``(B, N)``.
        solution (Solution, optional): The solution; None where nothing was solved for.
        guess (Tensor): The initial guess, ``(B, N)``, with a graph to its own
            parameters if it has some. In the shallow mode nothing starts from it.
    """

    f: FixedPointFunction
    layout: StateLayout
    state: Tensor
    solution: Optional[Solution]
    guess: Tensor

    def linearize(self) -> tuple[Tensor, Tensor]:
        """Returns ``z`` and ``f(z)`` at the result, ``(B, N)``, with a graph between.

        ``z`` is a leaf, so what is computed from the Jacobian is differentiated at a
        fixed state. The evaluation the implicit gradient has made is used if there is
        one; otherwise ``f`` is evaluated once more.
        """
        if self.solution is not None and self.solution.linearization is not None:
            return self.solution.linearization
        with torch.enable_grad():
            z = self.state.detach().requires_grad_()
            return z, self.f(z)


SolveHook = Callable[['EquilibriumLayer', Solve], Any]


class EquilibriumLayer(nn.Module):
    """Returns the joint equilibrium ``z = f(z; x)`` of several feature maps.

    Where gradients are wanted, the state comes from the gradient object (for the
    implicit gradient that is one more application of ``f``); elsewhere it is the
    solver's own.

    To observe the solves, register an ordinary forward hook on this module: its output
    holds the :class:`Solution`, and ``solution.adjoint`` that of the adjoint system
    once backward has run. To evaluate ``f`` further, as extra losses do, use
    :meth:`register_solve_hook`.

    Args:
        cell (nn.Module): ``f``, called as ``cell(states, injections) -> states`` with
            tuples of feature maps ``(B, ...)``. ``cell.freeze(injections)`` returns a
            context that keeps fixed what must not change during one solve.
        solver (FixedPointSolver or dict): Solver of the forward pass.
        gradient (EquilibriumGradient or dict): How to differentiate.
        num_layers (int): Applications of ``f`` in the shallow mode. Defaults to 5.
        initial_guess (InitialGuess or dict): Where the solve starts. Defaults to
            ``dict(type='ZeroGuess')``.
        compile_cell (dict, optional): Arguments of ``torch.compile``, ``dict()`` for
            its defaults, with which the cell is compiled for the evaluations that
            autograd does not record: those of the forward solve. Defaults to None,
            not compiled.

    Attributes:
        shallow (bool): Whether ``f`` is unrolled ``num_layers`` times from zero, in
            training and inference alike, instead of solved. Defaults to False.
        keep (Collection[int]): Numbers of the evaluations whose iterates stay in the
            solution while training. Defaults to ().
    """

    def __init__(
        self,
        cell: nn.Module,
        solver: Union[FixedPointSolver, dict],
        gradient: Union[EquilibriumGradient, dict],
        num_layers: int = 5,
        initial_guess: Union[InitialGuess, dict] = dict(type='ZeroGuess'),
        compile_cell: Optional[dict] = None,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.compiler = None if compile_cell is None else CellCompiler(compile_cell)
        self.solver = build(solver, FixedPointSolver, 'forward_solver')
        self.gradient = build(gradient, EquilibriumGradient, 'gradient')
        self.shallow_gradient = UnrolledGradient(num_layers)
        self.initial_guess = build(initial_guess, InitialGuess, 'initial_guess')
        self.shallow = False
        self.keep: Collection[int] = ()
        self._solve_hooks: OrderedDict[int, SolveHook] = OrderedDict()

    def register_solve_hook(self, hook: SolveHook) -> RemovableHandle:
        """Registers a function to be called at the end of every forward pass.

        It is called as ``hook(layer, solve)`` while dropout masks and normalised
        weights are still those of the solve, with a :class:`Solve`.

        Args:
            hook (Callable): The function; its result is not used.

        Returns:
            RemovableHandle: Its ``remove()`` takes the hook away again.
        """
        handle = RemovableHandle(self._solve_hooks)
        self._solve_hooks[handle.id] = hook
        return handle

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
        dtype = torch.promote_types(injections[0].dtype, torch.float32)
        guess = self.initial_guess(injections, layout, dtype)
        # Only a loss of its own trains the guess.
        z0 = zero_state(injections, layout, dtype) if self.shallow else guess.detach()

        def function_of(injections: Sequence[Tensor]) -> FixedPointFunction:
            def f(state: Tensor) -> Tensor:
                features = self._evaluate(layout.unpack(state), injections)
                return layout.pack(features).to(state.dtype)

            return f

        def restrict(rows: Tensor) -> FixedPointFunction:
            return function_of([_select(injection, rows) for injection in injections])

        f = function_of(injections)
        with self.cell.freeze(injections):
            differentiate = torch.is_grad_enabled() and any(
                tensor.requires_grad for tensor in (*self.parameters(), *injections)
            )
            state, solution = self._equilibrium(f, z0, differentiate, restrict)
            if solution is not None:
                self.initial_guess.update(solution.state, layout)
            solve = Solve(f, layout, state, solution, guess)
            for hook in self._solve_hooks.values():
                hook(self, solve)
        return layout.unpack(state), solution

    def _evaluate(
        self, states: Sequence[Tensor], injections: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        # What is compiled cannot be differentiated twice, and each product through it
        # would compute the gradients of the weights as well.
        if self.compiler is None or torch.is_grad_enabled():
            return self.cell(states, injections)
        return self.compiler(self.cell, states, injections)

    def _equilibrium(
        self,
        f: FixedPointFunction,
        z0: Tensor,
        differentiate: bool,
        restrict: Callable[[Tensor], FixedPointFunction],
    ) -> tuple[Tensor, Optional[Solution]]:
        if self.shallow:
            return self.shallow_gradient.attach(f, Solution.initial(z0)), None
        if differentiate and not self.gradient.starts_at_equilibrium:
            return self.gradient.attach(f, Solution.initial(z0)), None
        if self.training or differentiate:
            solution = self.solver.solve(f, z0, keep=self.keep if self.training else ())
        else:
            # Dropout masks, which belong to the whole batch, are not there.
            solution = self.solver.solve(f, z0, restrict=restrict)
        if differentiate:
            # Casts of parameters that autocast cached in the solve have no graph.
            torch.clear_autocast_cache()
            state = self.gradient.attach(f, solution)
        else:
            state = solution.state
        # The solver's history must not outlive the forward pass, unless the gradient
        # holds on to it.
        solution.inverse_jacobian = None
        return state, solution


def _select(injection: Tensor, rows: Tensor) -> Tensor:
    """Takes some samples, without writing out what is expanded over the batch."""
    return injection[: len(rows)] if injection.stride(0) == 0 else injection[rows]
