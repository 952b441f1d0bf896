"""Jacobian regularisation through the losses of a stock model."""

from __future__ import annotations

import copy
import random
from typing import Any, Optional

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import EquilibriumLayer, squared_frobenius_norm
from ...deq.layer import Solve
from .implicit_gradient_hook import ImplicitGradientHook
from .utils import equilibrium_layers, unwrapped


@HOOKS.register_module()
class JacobianRegularizationHook(Hook):
    """Keeps the equilibrium easy to find by penalising the Jacobian of the cell.

    Adds ``loss_jacobian = weight * ||J||_F^2 / numel(z)`` to the losses, with ``J``
    estimated at the equilibrium, or at the end of the shallow unroll, by Hutchinson's
    estimator (Bai et al., "Stabilizing Equilibrium Models by Jacobian Regularization",
    ICML 2021, section 4). It enters where the model returns its losses, so that loss
    scaling, gradient accumulation, several processes and the log treat it as any other.

    Whether a step is regularised is drawn from the seed of the run and the number of
    the step: the same on every rank, and after resuming. Iterations whose gradients are
    accumulated are one step.

    Args:
        weight (float): Weight of the loss at the equilibrium, not negative.
        freq (float): Probability that a step is regularised, in (0, 1].
            Defaults to 1.0.
        num_vectors (int): Random vectors of the estimator, at least 1. Defaults to 2.
        incremental (int, optional): Iterations at the equilibrium after each of which
            the weight is raised by 0.1. Defaults to None, a constant weight.
        stop_epoch (int, optional): Epochs after which nothing is regularised any more.
            Defaults to None, never.
        pretrain_weight (float): Weight in the shallow mode, not negative.
            Defaults to 0.0.
        max_evals_delta (int): In a step at the equilibrium that is regularised, the
            budget of the forward solver is shifted by a random integer from
            ``-max_evals_delta`` to 1; 0 shifts nothing. Defaults to 0.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> custom_hooks = [
        ...     dict(type='ImplicitGradientHook', pretrain_iters=16000),
        ...     dict(type='JacobianRegularizationHook', weight=0.4, freq=0.02),
        ... ]
    """

    # After ImplicitGradientHook has decided on the phase.
    priority = 'BELOW_NORMAL'

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
        for name, value in (('weight', weight), ('pretrain_weight', pretrain_weight)):
            if not value >= 0:
                raise ValueError(f'{name} must not be negative, got {value!r}')
        if not 0 < freq <= 1:
            raise ValueError(f'freq must be in (0, 1], got {freq!r}')
        for name, value, least in (
            ('num_vectors', num_vectors, 1),
            ('incremental', incremental, 1),
            ('stop_epoch', stop_epoch, 0),
            ('max_evals_delta', max_evals_delta, 0),
        ):
            optional = name in ('incremental', 'stop_epoch')
            if value is None and optional:
                continue
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f'{name} must be an integer of at least {least}'
                    f'{" or None" if optional else ""}, got {value!r}'
                )
        self.weight = weight
        self.freq = freq
        self.num_vectors = num_vectors
        self.incremental = incremental
        self.stop_epoch = stop_epoch
        self.pretrain_weight = pretrain_weight
        self.max_evals_delta = max_evals_delta
        self._step = _Step()
        self._solvers: list[tuple[EquilibriumLayer, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Registers what estimates the loss and what adds it to the others."""
        model = unwrapped(runner.model)
        layers = equilibrium_layers(model)
        if not layers:
            raise ValueError(
                'JacobianRegularizationHook needs a model with an EquilibriumLayer, '
                f"such as backbone=dict(type='MDEQ'); {type(model).__name__} has none"
            )
        # Plain functions: bound methods would be deep-copied along with the model.
        step, num_vectors = self._step, self.num_vectors

        def estimate(layer: EquilibriumLayer, solve: Solve) -> None:
            if step.weight == 0 or not layer.training or not torch.is_grad_enabled():
                return
            z, fz = solve.linearize()
            norms = squared_frobenius_norm(fz, z, num_vectors, create_graph=True)
            step.estimates.append(norms.mean() / z.shape[1])

        def add_loss(module: nn.Module, args: Any, output: Any) -> Any:
            if not step.estimates or not isinstance(output, dict):
                return output
            loss = step.weight * torch.stack(step.estimates).mean()
            step.estimates.clear()
            return {**output, 'loss_jacobian': loss}

        for layer in layers:
            layer.register_solve_hook(estimate)
        model.register_forward_hook(add_loss)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Decides whether this iteration is regularised, and how strongly."""
        layers = equilibrium_layers(runner.model)
        # OptimWrapper has no public name for it.
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        step = runner.iter // accumulated
        generator = random.Random(runner.seed * 2**32 + step)
        chosen = generator.random() < self.freq
        shift = generator.randint(-self.max_evals_delta, 1)
        shallow = any(layer.shallow for layer in layers)
        stopped = self.stop_epoch is not None and runner.epoch >= self.stop_epoch
        self._step.estimates.clear()
        self._step.weight = (
            self._weight(runner, shallow) if chosen and not stopped else 0.0
        )
        if self._step.weight and self.max_evals_delta and not shallow:
            for layer in layers:
                solver = layer.solver
                self._solvers.append((layer, solver))
                layer.solver = copy.copy(solver)
                layer.solver.max_evals = max(solver.max_evals + shift, 1)

    def _weight(self, runner: Runner, shallow: bool) -> float:
        if shallow:
            return self.pretrain_weight
        if self.incremental is None:
            return self.weight
        pretrained = sum(
            hook.n_pretrain_iters(runner)
            for hook in runner.hooks
            if isinstance(hook, ImplicitGradientHook)
        )
        raised = (runner.iter - pretrained) // self.incremental
        return self.weight + self.INCREMENT * raised

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Takes back the shift of the budget."""
        for layer, solver in self._solvers:
            layer.solver = solver
        self._solvers.clear()


class _Step:
    """What the functions registered on the model share with the hook."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.estimates: list[Tensor] = []
