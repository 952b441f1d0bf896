"""A solve without decisions: the same operations for every input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Optional, Union

import torch
from torch import Tensor

from ..apis import solving_mode
from ..deq import (
    AndersonSolver,
    EquilibriumLayer,
    FixedPointFunction,
    FixedPointSolver,
    ForwardPass,
    Mode,
    PicardSolver,
    Unrolled,
)
from ..deq.checks import check_choice, check_int
from ..deq.solvers.loop import measure

SOLVERS: dict[str, type[FixedPointSolver]] = {
    'anderson': AndersonSolver,
    'picard': PicardSolver,
}


@dataclass(frozen=True)
class FixedEvaluations(Mode):
    """Evaluates ``f`` a fixed number of times, so that an exporter can record it.

    The iterates are those of the solver, and the result is that of the one with the
    smallest residual, for each sample on its own. No sample stops early. The operations
    do not depend on values, and each has a counterpart in ONNX.

    Args:
        solver (AndersonSolver or PicardSolver): The method. It is evaluated
            ``max_evals`` times. ``tol``, ``check_interval`` and ``history_dtype`` have
            no effect.

    Raises:
        TypeError: If the solver is another one.
    """

    solver: FixedPointSolver

    def __post_init__(self) -> None:
        _method_of(self.solver)

    def run(
        self,
        forward_pass: ForwardPass,
        differentiate: bool,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Tensor:
        """Returns the best state of each sample; see :meth:`Mode.run`."""
        solver = self.solver
        method = _method_of(solver)
        z = best = forward_pass.guess.detach()
        least = torch.full_like(z[:, 0], torch.inf)
        for number in range(1, solver.max_evals + 1):
            fz = forward_pass.f(z)
            g = fz - z
            residual = measure(g, fz, solver.stop_mode, norms_of=_norms)
            improved = residual < least
            least = torch.where(improved, residual, least)
            candidate = z if solver.returns == 'iterate' else fz
            best = torch.where(improved.unsqueeze(1), candidate, best)
            if number < solver.max_evals:
                z = method.step(z, g)
        return best


def fixed_mode(
    layer: EquilibriumLayer,
    solver: Optional[str] = None,
    evals: Optional[int] = None,
) -> Union[FixedEvaluations, Unrolled]:
    """Returns a mode that an exporter can record, as near as can be to that of a layer.

    Args:
        layer (EquilibriumLayer): The layer. In the unrolled mode, as a checkpoint of
            the unrolled phase leaves it, it stays in it.
        solver (str, optional): ``'anderson'`` or ``'picard'``. Settings of the layer's
            own solver are kept if it is of this kind. Defaults to None, the solver of
            the layer if it is one of these, else Anderson's.
        evals (int, optional): Evaluations, at least 1. Defaults to None, the budget of
            the layer.

    Raises:
        ValueError: If an argument is out of its range, or if there is a solver for a
            layer in the unrolled mode.
    """
    check_choice('solver', solver, (None, *SOLVERS))
    check_int('evals', evals, 1, optional=True)
    mode = layer.mode
    if isinstance(mode, Unrolled):
        if solver is not None:
            raise ValueError(
                'solver must be None for a model in the unrolled mode, which its '
                f'checkpoint has brought, got {solver!r}'
            )
        return Unrolled(evals or mode.num_layers)
    configured = solving_mode(layer).solver
    if solver is not None:
        kind = SOLVERS[solver]
    else:
        known = isinstance(configured, tuple(SOLVERS.values()))
        kind = type(configured) if known else AndersonSolver
    if not isinstance(configured, kind):
        configured = kind(
            configured.max_evals,
            stop_mode=configured.stop_mode,
            returns=configured.returns,
        )
    return FixedEvaluations(
        replace(configured, max_evals=evals or configured.max_evals)
    )


class _Method(ABC):
    """How a solve goes on, without a change of a tensor in place."""

    @abstractmethod
    def step(self, z: Tensor, g: Tensor) -> Tensor:
        """Returns the next iterate.

        Args:
            z (Tensor): The iterate, ``(B, N)``.
            g (Tensor): Its residual ``f(z) - z``, ``(B, N)``.
        """


class _Picard(_Method):
    """See :class:`PicardSolver`."""

    def __init__(self, solver: PicardSolver) -> None:
        self.damping = solver.damping

    def step(self, z: Tensor, g: Tensor) -> Tensor:
        return z + self.damping * g


class _Anderson(_Method):
    """See :class:`AndersonSolver`. It keeps the iterates in lists, the newest last."""

    def __init__(self, solver: AndersonSolver) -> None:
        self.solver = solver
        self.residuals: list[Tensor] = []
        self.mixed: list[Tensor] = []

    def step(self, z: Tensor, g: Tensor) -> Tensor:
        window = self.solver.window
        newest = z + self.solver.mixing * g
        self.residuals = [*self.residuals, g][-window:]
        self.mixed = [*self.mixed, newest][-window:]
        if len(self.mixed) == 1:
            return newest
        rows = torch.stack(self.residuals, dim=1)
        gram = (rows @ rows.mT).to(torch.float64)
        weights = affine_weights(gram, self.solver.ridge).to(z.dtype)
        # Differences shrink as the iterates converge, so rounding them does no harm.
        older = torch.stack(self.mixed[:-1], dim=1) - newest.unsqueeze(1)
        return newest + (weights[:, :-1].unsqueeze(1) @ older).squeeze(1)


def _method_of(solver: FixedPointSolver) -> _Method:
    if isinstance(solver, AndersonSolver):
        return _Anderson(solver)
    if isinstance(solver, PicardSolver):
        return _Picard(solver)
    raise TypeError(
        'solver must be an AndersonSolver or a PicardSolver, got '
        f'{type(solver).__name__}'
    )


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1)


def affine_weights(gram: Tensor, ridge: float) -> Tensor:
    """Does what :meth:`AndersonSolver.coefficients` does, by elimination.

    ONNX has no Cholesky factorisation. For a positive definite matrix Gauss-Jordan
    elimination needs no exchange of rows; its pivots are positive if and only if the
    matrix is positive definite.

    Args:
        gram (Tensor): Gram matrix of the residuals, the newest last, ``(B, m, m)``,
            float64.
        ridge (float): The regularisation.

    Returns:
        Tensor: Weights that sum to 1, ``(B, m)``; 1 for the newest alone where the
        system cannot be solved.
    """
    size = gram.shape[1]
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    ones = torch.ones_like(gram[:, :, :1])
    system = torch.cat([gram * (1 + ridge * eye), ones], dim=2)
    solvable = torch.ones_like(gram[:, 0, 0], dtype=torch.bool)
    for index in range(size):
        row, column = system[:, index : index + 1], system[:, :, index : index + 1]
        pivot = row[:, :, index : index + 1]
        solvable = solvable & (pivot[:, 0, 0] > 0)
        system = system - (column - eye[:, index : index + 1]) * (row / pivot)
    weights = system[:, :, size]
    weights = weights / weights.sum(dim=1, keepdim=True)
    solvable = solvable & (weights.abs() < torch.inf).all(dim=1)
    return torch.where(solvable.unsqueeze(1), weights, eye[size - 1])
