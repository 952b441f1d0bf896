"""Differentiation by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Optional, Union

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor

from ..builder import build
from ..forward_pass import AdjointRecord, ForwardPass
from ..initial_guesses import AdjointGuess
from ..solvers import FixedPointFunction, FixedPointSolver, ReducedFunction
from ..solvers.loop import refuse_transforms
from .base import EquilibriumGradient


@TASK_UTILS.register_module()
class ImplicitGradient(EquilibriumGradient):
    """The exact gradient at the equilibrium, in the memory of one evaluation of ``f``.

    ``f`` is evaluated once more at the solution ``z``, with a graph. When the gradient
    ``g`` of the loss arrives there in backward, it is replaced by the solution of the
    adjoint system ``y = J^T y + g``. There ``J`` is the Jacobian of ``f`` at ``z``
    (MDEQ paper, section 3.2; DEQ paper, theorem 1). The solver needs only
    vector-Jacobian products through that one evaluation. Ordinary autograd then carries
    ``y`` on to the parameters.

    The adjoint system is solved for the gradient scaled to unit norm in each sample. So
    tolerances are relative to the gradient, and loss scaling changes nothing. The
    solution is reported to the :class:`ForwardPass`. The gradient of a sample that
    holds NaN or Inf, as when a loss scale was too large, passes through, so that the
    gradient scaler sees it; the other samples are solved as without it.

    The initial guess of the adjoint solve is the gradient itself, or the gradient times
    the inverse Jacobian that the forward solver ended with, which costs no product.
    Without a solver the guess is the result. With :class:`InverseJacobianGuess` that is
    SHINE (Ramzi et al., "SHINE: SHaring the INverse Estimate from the forward pass for
    bi-level optimization and implicit models", ICLR 2022, section 2); its refinements
    are a solver with a small budget.

    Where the layer has an ``evaluation_dtype`` and the tolerance is at least 0.18, the
    products begin in reduced precision, through an evaluation of their own at ``z``.
    What goes on to the parameters takes the evaluation in float32.

    Second derivatives are not available: backward with ``create_graph=True`` raises a
    ``RuntimeError``.

    Args:
        solver (FixedPointSolver or dict, optional): Solver of the adjoint system. It
            counts vector-Jacobian products as evaluations. None for no solve.
            Defaults to a :class:`BroydenSolver` with its own defaults.
        initial_guess (AdjointGuess or dict): Where the adjoint solve starts:
            :class:`GradientGuess` or :class:`InverseJacobianGuess`. Defaults to
            ``dict(type='GradientGuess')``.

    Examples:
        >>> import torch
        >>> from mdeq_mm.deq import Cell, EquilibriumLayer, ImplicitGradient
        >>> from mdeq_mm.deq import PicardSolver
        >>> class Affine(Cell):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a = torch.nn.Parameter(torch.tensor(0.5))
        ...
        ...     def forward(self, states, injections):
        ...         return (self.a * states[0] + injections[0],)
        >>> solver = PicardSolver(max_evals=50, tol=1e-6)
        >>> layer = EquilibriumLayer(Affine(), solver, ImplicitGradient(solver))
        >>> layer((torch.ones(1, 1),)).features[0].sum().backward()
        >>> round(layer.cell.a.grad.item(), 3)  # d(1 / (1 - a)) / da = 1 / (1 - a)^2
        4.0
    """

    def __init__(
        self,
        solver: Optional[Union[FixedPointSolver, dict]] = dict(type='BroydenSolver'),
        initial_guess: Union[AdjointGuess, dict] = dict(type='GradientGuess'),
    ) -> None:
        self.solver = (
            None
            if solver is None
            else build(solver, FixedPointSolver, 'gradient.solver')
        )
        self.initial_guess = build(
            initial_guess, AdjointGuess, 'gradient.initial_guess'
        )

    def attach(self, forward_pass: ForwardPass) -> Tensor:
        """Returns ``f(z)`` with the adjoint solve in its backward.

        Raises:
            ValueError: If the initial guess needs an inverse Jacobian and the forward
                solver has left none.
        """
        z, fz = forward_pass.linearize()
        solution = forward_pass.solution
        assert solution is not None  # the state is that of a solve
        guess = self.initial_guess.bind(solution)
        with torch.enable_grad():
            # The hook lives on a node of its own: products through fz must not fire it.
            attached = fz.view_as(fz)
        adjoint = _Adjoint(
            self.solver,
            guess,
            z,
            fz,
            forward_pass.reduced,
            forward_pass.adjoint_record,
        )
        attached.register_hook(adjoint)
        return attached

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(solver={self.solver!r}, '
            f'initial_guess={self.initial_guess!r})'
        )


class _Adjoint:
    """The gradient hook of one forward pass.

    Args:
        solver (FixedPointSolver, optional): Solver of the adjoint system.
        guess (Callable): Maps the unit gradient to where the solve starts.
        z (Tensor): The solution as a leaf, ``(B, N)``.
        fz (Tensor): ``f(z)`` with its graph, ``(B, N)``.
        reduced (ReducedFunction, optional): ``f`` in reduced precision.
        record (AdjointRecord): Takes the solution.
    """

    def __init__(
        self,
        solver: Optional[FixedPointSolver],
        guess: Callable[[Tensor], Tensor],
        z: Tensor,
        fz: Tensor,
        reduced: Optional[ReducedFunction],
        record: AdjointRecord,
    ) -> None:
        self.solver = solver
        self.guess = guess
        self.z = z
        self.fz = fz
        self.record = record
        # Rounding by eps changes the sign in front of about eps of all ReLUs, hence
        # their derivative by 1: an error of sqrt(eps) in the norm.
        self.resolution = 0.0 if reduced is None else math.sqrt(reduced.resolution)
        # With a tighter tolerance most products would be in full precision anyway. Then
        # nothing of the function is kept until backward.
        is_loose = solver is not None and solver.tol >= 2 * self.resolution
        self.reduced = reduced if is_loose else None

    def __call__(self, grad: Optional[Tensor]) -> Optional[Tensor]:
        if grad is None:  # autograd's way to say that it is zero
            return None
        if torch.is_grad_enabled():
            raise RuntimeError(
                'ImplicitGradient has no second derivative: backward was called with '
                'create_graph=True. Use PhantomGradient or the unrolled mode, which '
                'are differentiable twice.'
            )
        refuse_transforms(grad)
        # Squares of tiny or huge numbers are out of the range of float32.
        norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True, dtype=torch.float64)
        # Chosen on the device: to ask whether all are finite would wait for it.
        finite = norm.isfinite()
        unit = grad / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        unit = torch.where(finite, unit, 0).to(grad.dtype)
        y = self.guess(unit)
        if self.solver is not None:
            y = self._solve(self.solver, y, unit)
        return torch.where(finite, (y * norm).to(grad.dtype), grad)

    def _solve(self, solver: FixedPointSolver, start: Tensor, unit: Tensor) -> Tensor:
        reduced = None
        if self.reduced is not None:
            # Not in the forward pass, so that it takes no memory until now.
            with torch.enable_grad():
                z = self.z.detach().requires_grad_()
                fz = self.reduced.f(z)
            reduced = ReducedFunction(_adjoint_system(z, fz, unit), self.resolution)
        f = _adjoint_system(self.z, self.fz, unit)
        solution = solver.solve(f, start, reduced=reduced)
        # The solver's history must not be there while autograd carries on.
        self.record.report(replace(solution, inverse_jacobian=None))
        return solution.state


def _adjoint_system(z: Tensor, fz: Tensor, unit: Tensor) -> FixedPointFunction:
    """Returns ``y -> J^T y + unit`` for ``(B, N)``, given ``fz`` with its graph."""

    def f(y: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(fz, z, y, retain_graph=True)
        return product + unit

    return f
