"""How the equilibria of images converge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from ..apis import single_layer, solving_mode
from ..deq import EquilibriumLayer, ForwardPass


@torch.no_grad()
def convergence_trace(
    model: BaseModel, batches: Iterable[Any], n_samples: int, max_evals: int
) -> Tensor:
    """Returns the residuals of solves with a tolerance of zero.

    They end before the budget only at an exact fixed point.

    Args:
        model (BaseModel): A model in evaluation mode with one equilibrium layer.
        batches (Iterable): Batches for ``model.test_step``. No more of them are taken
            than needed.
        n_samples (int): Number of samples.
        max_evals (int): The budget.

    Returns:
        Tensor: Residual at each evaluation in the measure of the layer's solver,
        ``(max_evals, n_samples)``, or fewer samples if the batches end before.
    """
    layer = single_layer(model)
    mode = solving_mode(layer)
    solver = replace(mode.solver, tol=0.0, max_evals=max_evals)
    traces: list[Tensor] = []

    def observe(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        if forward_pass.solution is not None:
            traces.append(forward_pass.solution.trace)

    observing = layer.register_pass_hook(observe)
    with observing, layer.using(mode=replace(mode, solver=solver)):
        for batch in batches:
            model.test_step(batch)
            if sum(trace.shape[1] for trace in traces) >= n_samples:
                break
    return torch.cat(traces, dim=1)[:, :n_samples]
