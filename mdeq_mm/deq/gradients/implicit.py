"""Differentiation by the implicit function theorem."""

from __future__ import annotations

from typing import Optional, Union

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..builder import build
from ..solvers.base import FixedPointFunction, FixedPointSolver, Solution
from .base import EquilibriumGradient


@TASK_UTILS.register_module()
class ImplicitGradient(EquilibriumGradient):
    """The exact gradient at the equilibrium, in the memory of one evaluation of ``f``.

    ``f`` is evaluated once more at the solution ``z``, with a graph. When the gradient
    ``g`` of the loss arrives there in backward, it is replaced by the solution of the
    adjoint system ``y = J^T y + g``, ``J`` being the Jacobian of ``f`` at ``z``, found
    with vector-Jacobian products through that one evaluation (MDEQ paper, section 3.2;
    DEQ paper, theorem 1). Ordinary autograd carries ``y`` on to the parameters.

    The adjoint system is solved for the gradient scaled to unit norm in each sample, so
    tolerances are relative to the gradient and loss scaling changes nothing. Its solve
    starts from the gradient itself, and what it found is left in ``solution.adjoint``.
    A gradient that holds NaN or Inf, as when a loss scale was too large, is passed
    through without a solve, so that the scaler sees it.

    Second derivatives are not available: backward with ``create_graph=True`` raises a
    ``RuntimeError``.

    Args:
        solver (FixedPointSolver or dict): Solver of the adjoint system; it counts
            vector-Jacobian products as evaluations. Defaults to a
            :class:`BroydenSolver` with its own defaults.

    Examples:
        >>> import torch
        >>> from mdeq_mm.deq import ImplicitGradient, PicardSolver
        >>> a = torch.tensor(0.5, requires_grad=True)
        >>> f = lambda z: a * z + 1
        >>> solution = PicardSolver(max_evals=50, tol=1e-6).solve(f, torch.zeros(1, 1))
        >>> ImplicitGradient().attach(f, solution).sum().backward()
        >>> round(a.grad.item(), 3)  # d(1 / (1 - a)) / da = 1 / (1 - a)^2
        4.0
    """

    def __init__(
        self, solver: Union[FixedPointSolver, dict] = dict(type='BroydenSolver')
    ) -> None:
        self.solver = build(solver, FixedPointSolver, 'gradient.solver')

    def attach(self, f: FixedPointFunction, solution: Solution) -> Tensor:
        with torch.enable_grad():
            z = solution.state.detach().requires_grad_()
            fz = f(z)
            # The hook lives on a node of its own: products through fz must not fire it.
            attached = fz.view_as(fz)
        solution.linearization = (z, fz)

        def solve_adjoint(grad: Optional[Tensor]) -> Optional[Tensor]:
            if grad is None:  # autograd's way to say that it is zero
                return None
            if torch.is_grad_enabled():
                raise RuntimeError(
                    'ImplicitGradient has no second derivative: backward was called '
                    'with create_graph=True. Use UnrolledGradient or PhantomGradient, '
                    'which are differentiable twice.'
                )
            norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
            if not norm.isfinite().all():
                return grad
            unit = grad / norm.clamp_min(torch.finfo(grad.dtype).tiny)

            def adjoint_function(y: Tensor) -> Tensor:
                (product,) = torch.autograd.grad(fz, z, y, retain_graph=True)
                return product + unit

            solution.adjoint = self.solver.solve(adjoint_function, unit)
            return solution.adjoint.state * norm

        attached.register_hook(solve_adjoint)
        return attached
