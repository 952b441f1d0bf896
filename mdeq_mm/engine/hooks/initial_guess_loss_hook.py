"""The loss that trains a learned initial guess."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import EquilibriumLayer
from ...deq.layer import Solve
from ...models import ProjectedGuess
from .utils import equilibrium_layers, unwrapped


@HOOKS.register_module()
class InitialGuessLossHook(Hook):
    """Trains a :class:`ProjectedGuess` to start solves near their equilibrium.

    Adds ``loss_initial_guess = weight * ||z0 - z||^2 / ||z||^2``, the mean over the
    samples, to the losses, where ``z0`` is the guess and ``z`` what was found, in the
    shallow phase the end of the unroll. It is differentiated with respect to the
    convolutions of the guess alone.

    Args:
        weight (float): Weight of the loss, positive. Defaults to 1.0.

    Raises:
        ValueError: If ``weight`` is out of its range.

    Examples:
        >>> backbone = dict(type='MDEQ', initial_guess=dict(type='ProjectedGuess'))
        >>> custom_hooks = [
        ...     dict(type='ImplicitGradientHook', pretrain_iters=3000),
        ...     dict(type='InitialGuessLossHook'),
        ... ]
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not weight > 0:
            raise ValueError(f'weight must be positive, got {weight!r}')
        self.weight = weight

    def before_train(self, runner: Runner) -> None:
        """Registers what compares guess and result and what adds the loss."""
        model = unwrapped(runner.model)
        layers = [
            layer
            for layer in equilibrium_layers(model)
            if isinstance(layer.initial_guess, ProjectedGuess)
        ]
        if not layers:
            raise ValueError(
                'InitialGuessLossHook needs a model with a learned initial guess, such '
                "as backbone=dict(type='MDEQ', "
                "initial_guess=dict(type='ProjectedGuess'))"
            )
        # Plain functions: bound methods would be deep-copied along with the model.
        errors: list[Tensor] = []
        weight = self.weight

        def compare(layer: EquilibriumLayer, solve: Solve) -> None:
            if layer.training and solve.guess.requires_grad:
                errors.append(relative_error(solve.guess, solve.state.detach()))

        def add_loss(module: nn.Module, args: Any, output: Any) -> Any:
            if not errors or not isinstance(output, dict):
                return output
            loss = weight * torch.stack(errors).mean()
            errors.clear()
            return {**output, 'loss_initial_guess': loss}

        for layer in layers:
            layer.initial_guess.supervised = True
            layer.register_solve_hook(compare)
        model.register_forward_hook(add_loss)


def relative_error(guess: Tensor, state: Tensor) -> Tensor:
    """Returns the mean over the samples of ``||guess - state||^2 / ||state||^2``."""
    squared_norm = state.square().sum(1).clamp_min(torch.finfo(state.dtype).tiny)
    return ((guess - state).square().sum(1) / squared_norm).mean()
