"""What ways to differentiate an equilibrium cost, and how exact they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from ..apis import single_layer, solving_mode
from ..deq import (
    BroydenSolver,
    Equilibrium,
    ImplicitGradient,
    InverseJacobianGuess,
    Mode,
    PhantomGradient,
    Unrolled,
)
from .counting import count_saved_bytes, count_work


@dataclass
class GradientCost:
    """What a gradient of all parameters took.

    Attributes:
        evaluations (int): Evaluations of the cell.
        products (int): Vector-Jacobian products of the adjoint solve.
        saved_bytes (int): Bytes that autograd saved for backward.
        cosine (float): Cosine between the gradient and the exact one.
    """

    evaluations: int
    products: int
    saved_bytes: int
    cosine: float


def modes_to_compare(configured: Equilibrium) -> dict[str, Mode]:
    """Returns ways to differentiate, by name.

    Args:
        configured (Equilibrium): Solver and gradient of the model. All but the unrolled
            mode solve with its solver.
    """
    solver, gradient = configured.solver, configured.gradient
    modes: dict[str, Mode] = {
        'as configured': configured,
        'phantom, 5 steps, damping 0.5': Equilibrium(solver, PhantomGradient(5, 0.5)),
        'phantom, 5 steps, damping 0.7': Equilibrium(solver, PhantomGradient(5, 0.7)),
        'Jacobian-free': Equilibrium(solver, PhantomGradient(1, 1.0)),
        f'unrolled {solver.max_evals} times': Unrolled(solver.max_evals),
    }
    if not isinstance(solver, BroydenSolver):
        return modes
    inverse = InverseJacobianGuess()
    if isinstance(gradient, ImplicitGradient):
        modes['as configured, from the inverse'] = Equilibrium(
            solver, ImplicitGradient(gradient.solver, inverse)
        )
    for n in (0, 1, 5):
        # The first product only tells the residual of the start.
        refinement = BroydenSolver(max_evals=n + 1, tol=0.0) if n else None
        modes[f'SHINE, {n} refinements'] = Equilibrium(
            solver, ImplicitGradient(refinement, inverse)
        )
    return modes


def compare_gradients(
    model: BaseModel, data: dict[str, Any], max_evals: int = 200
) -> dict[str, GradientCost]:
    """Compares ways to differentiate the equilibrium of a model.

    Args:
        model (BaseModel): A model with one equilibrium layer. Its gradients are those
            of the last way afterwards.
        data (dict): A batch as the model's data preprocessor returns it.
        max_evals (int): Budget of both solves of the exact gradient. Defaults to 200.

    Returns:
        dict[str, GradientCost]: What each way took.
    """
    configured = solving_mode(single_layer(model))
    tight = BroydenSolver(max_evals=max_evals, tol=1e-7, memory=max_evals)
    exact, _ = _differentiate(model, data, Equilibrium(tight, ImplicitGradient(tight)))
    costs = {}
    for name, mode in modes_to_compare(configured).items():
        found, cost = _differentiate(model, data, mode)
        cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0).item()
        costs[name] = replace(cost, cosine=cosine)
    return costs


def _differentiate(
    model: BaseModel, data: dict[str, Any], mode: Mode
) -> tuple[Tensor, GradientCost]:
    """Returns the gradient of all parameters, flat, and what it took."""
    layer = single_layer(model)
    model.zero_grad()
    with layer.using(mode=mode), count_work(layer) as work:
        with count_saved_bytes(model) as saved:
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
    gradient = torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )
    return gradient, GradientCost(work.evaluations, work.products, saved[0], 1.0)
