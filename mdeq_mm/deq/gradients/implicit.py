"""Differentiation by the implicit function theorem."""

from __future__ import annotations

from typing import Optional, Union

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..builder import build
from ..solvers import FixedPointSolver, LowRankInverse, Solution
from ..solvers.base import FixedPointFunction
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
    tolerances are relative to the gradient and loss scaling changes nothing. What the
    solve found is left in ``solution.adjoint``. A gradient that holds NaN or Inf, as
    when a loss scale was too large, is passed through without a solve, so that the
    scaler sees it.

    The solve starts from the gradient itself, or from the gradient times the inverse
    Jacobian that the forward solver ended with, which costs no product. Without a solve
    the start is all: with ``init='inverse'`` that is SHINE (Ramzi et al., "SHINE:
    SHaring the INverse Estimate from the forward pass for bi-level optimization and
    implicit models", ICLR 2022, section 2), whose refinements are a solver with a small
    budget.

    Second derivatives are not available: backward with ``create_graph=True`` raises a
    ``RuntimeError``.

    Args:
        solver (FixedPointSolver or dict, optional): Solver of the adjoint system; it
            counts vector-Jacobian products as evaluations. None for no solve.
            Defaults to a :class:`BroydenSolver` with its own defaults.
        init (str): Where the solve starts: ``'gradient'``, or ``'inverse'``, which
            takes a forward solver with a low-rank inverse (:class:`BroydenSolver`) and
            keeps its history until backward. Defaults to ``'gradient'``.

    Raises:
        ValueError: If ``init`` is unknown; by :meth:`attach` if the solution has no
            low-rank inverse.

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

    INITS = ('gradient', 'inverse')

    def __init__(
        self,
        solver: Optional[Union[FixedPointSolver, dict]] = dict(type='BroydenSolver'),
        init: str = 'gradient',
    ) -> None:
        if init not in self.INITS:
            raise ValueError(f'init must be one of {self.INITS}, got {init!r}')
        self.solver = (
            None
            if solver is None
            else build(solver, FixedPointSolver, 'gradient.solver')
        )
        self.init = init

    def attach(self, f: FixedPointFunction, solution: Solution) -> Tensor:
        with torch.enable_grad():
            z = solution.state.detach().requires_grad_()
            fz = f(z)
            # The hook lives on a node of its own: products through fz must not fire it.
            attached = fz.view_as(fz)
        solution.linearization = (z, fz)
        inverse = self._inverse(solution)

        def solve_adjoint(grad: Optional[Tensor]) -> Optional[Tensor]:
            if grad is None:  # autograd's way to say that it is zero
                return None
            if torch.is_grad_enabled():
                raise RuntimeError(
                    'ImplicitGradient has no second derivative: backward was called '
                    'with create_graph=True. Use UnrolledGradient or PhantomGradient, '
                    'which are differentiable twice.'
                )
            # Squares of tiny or huge numbers are out of the range of float32.
            norm = torch.linalg.vector_norm(
                grad, dim=1, keepdim=True, dtype=torch.float64
            )
            if not norm.isfinite().all():
                return grad
            unit = (grad / norm.clamp_min(torch.finfo(norm.dtype).tiny)).to(grad.dtype)
            start = unit
            if inverse is not None:
                # (I - J^T)^-1 is minus the transposed inverse Jacobian of f(z) - z.
                start = -inverse.apply_transpose(unit)
                # A forward solve that ran away may have left one that is of no use.
                finite = start.isfinite().all(dim=1, keepdim=True)
                start = torch.where(finite, start, unit)
            if self.solver is None:
                return (start * norm).to(grad.dtype)

            def adjoint_function(y: Tensor) -> Tensor:
                (product,) = torch.autograd.grad(fz, z, y, retain_graph=True)
                return product + unit

            solution.adjoint = self.solver.solve(adjoint_function, start)
            # Its history must not be there while autograd carries on.
            solution.adjoint.inverse_jacobian = None
            return (solution.adjoint.state * norm).to(grad.dtype)

        attached.register_hook(solve_adjoint)
        return attached

    def _inverse(self, solution: Solution) -> Optional[LowRankInverse]:
        if self.init == 'gradient':
            return None
        if solution.inverse_jacobian is None:
            raise ValueError(
                "init='inverse' takes a forward solver that ends with a low-rank "
                'inverse, such as BroydenSolver; the one that was used has none'
            )
        return solution.inverse_jacobian
