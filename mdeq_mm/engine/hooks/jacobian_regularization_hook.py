"""Jacobian regularisation through the losses of a stock model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...deq import (
    Equilibrium,
    EquilibriumLayer,
    ForwardPass,
    Unrolled,
    squared_frobenius_norm,
)
from ...deq.checks import check_int, check_number
from .base import ExtraLossHook, ModelCall, is_trained
from .equilibrium_schedule import UNROLLED_ITERS


@HOOKS.register_module()
class JacobianRegularizationHook(ExtraLossHook):
    """Keeps the equilibrium easy to find by penalising the Jacobian of the cell.

    Adds ``loss_jacobian = weight * ||J||_F^2 / numel(z)`` to the losses. ``J`` is the
    Jacobian at the equilibrium, or at the last state of the unrolled mode. Its norm is
    estimated by Hutchinson's estimator (Bai et al., "Stabilizing Equilibrium Models by
    Jacobian Regularization", ICML 2021, section 4).

    Whether a step is regularised is drawn from the seed of the run and the number of
    the step, so it is the same on every rank and after resuming. Iterations whose
    gradients are accumulated are one step.

    Args:
        weight (float): Weight of the loss at the equilibrium, not negative.
        freq (float): Probability that a step is regularised, in (0, 1].
            Defaults to 1.0.
        num_vectors (int): Random vectors of the estimator, at least 1. Defaults to 2.
        incremental (int, optional): Iterations at the equilibrium after each of which
            the weight is raised by 0.1. Defaults to None, a constant weight.
        stop_epoch (int, optional): Epochs after which nothing is regularised any more.
            Defaults to None, never.
        pretrain_weight (float): Weight while the layers are unrolled, not negative.
            Defaults to 0.0.
        max_evals_delta (int): In a regularised step at the equilibrium, the budget of
            the forward solver is shifted by a random integer from ``-max_evals_delta``
            to 1; 0 shifts nothing. Defaults to 0.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> default_hooks = dict(
        ...     equilibrium=dict(type='ImplicitGradientHook', pretrain_iters=16000),
        ...     jacobian=dict(type='JacobianRegularizationHook', weight=0.4, freq=0.02),
        ... )
    """

    loss_name = 'loss_jacobian'

    INCREMENT = 0.1

    def __init__(
        self,
        weight: float,
        freq: float = 1.0,
        num_vectors: int = 2,
        incremental: Optional[int] = None,
        stop_epoch: Optional[int] = None,
        pretrain_weight: float = 0.0,
        max_evals_delta: int = 0,
    ) -> None:
        super().__init__()
        check_number('weight', weight, least=0)
        check_number('freq', freq, above=0, most=1)
        check_int('num_vectors', num_vectors, 1)
        check_int('incremental', incremental, 1, optional=True)
        check_int('stop_epoch', stop_epoch, 0, optional=True)
        check_number('pretrain_weight', pretrain_weight, least=0)
        check_int('max_evals_delta', max_evals_delta, 0)
        self.weight = weight
        self.freq = freq
        self.num_vectors = num_vectors
        self.incremental = incremental
        self.stop_epoch = stop_epoch
        self.pretrain_weight = pretrain_weight
        self.max_evals_delta = max_evals_delta
        self._weight_now = 0.0

    def before_train(self, runner: Runner) -> None:
        """Checks that there is something to regularise.

        Raises:
            ValueError: If the model has no equilibrium layer.
        """
        super().before_train(runner)
        self.layers(runner.model)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Decides whether this iteration is regularised, and how strongly."""
        super().before_train_iter(runner, *args, **kwargs)
        layers = self.layers(runner.model)
        trained = [layer for layer in layers if layer.trains]
        # OptimWrapper has no public name for it.
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        step = runner.iter // accumulated
        generator = random.Random(runner.seed * 2**32 + step)
        chosen = generator.random() < self.freq
        shift = generator.randint(-self.max_evals_delta, 1)
        stopped = self.stop_epoch is not None and runner.epoch >= self.stop_epoch
        self._weight_now = self._weight(runner, trained)
        if stopped or not chosen or self._weight_now == 0:
            return
        self.open(runner.model, layers)
        if self.max_evals_delta:
            self._shift_budgets(trained, shift)

    def _weight(self, runner: Runner, layers: Sequence[EquilibriumLayer]) -> float:
        if any(isinstance(layer.mode, Unrolled) for layer in layers):
            return self.pretrain_weight
        if self.incremental is None:
            return self.weight
        unrolled = runner.message_hub.get_info(UNROLLED_ITERS, 0)
        raised = (runner.iter - unrolled) // self.incremental
        return self.weight + self.INCREMENT * raised

    def _shift_budgets(self, layers: Sequence[EquilibriumLayer], shift: int) -> None:
        for layer in layers:
            mode = layer.mode
            if isinstance(mode, Equilibrium):
                max_evals = max(mode.solver.max_evals + shift, 1)
                solver = replace(mode.solver, max_evals=max_evals)
                self.iteration_scope.enter_context(layer.using(solver=solver))

    def observe(
        self, layer: EquilibriumLayer, forward_pass: ForwardPass
    ) -> Optional[Tensor]:
        """Returns the estimate of ``||J||_F^2 / numel(z)``, a scalar with a graph."""
        if not is_trained(layer, forward_pass):
            return None
        z, fz = forward_pass.linearize()
        norms = squared_frobenius_norm(fz, z, self.num_vectors, create_graph=True)
        return norms.mean() / z.shape[1]

    def loss(self, kept: list[Tensor], call: ModelCall) -> Tensor:
        """Returns the weighted mean over the passes."""
        return self._weight_now * torch.stack(kept).mean()
