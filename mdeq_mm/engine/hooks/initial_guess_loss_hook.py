"""The loss that trains a learned initial guess."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, cast

import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import EquilibriumLayer, ForwardPass, LearnedGuess, equilibrium_layers
from ...deq.checks import check_number
from .base import ExtraLossHook, ModelCall


@HOOKS.register_module()
class InitialGuessLossHook(ExtraLossHook):
    """Trains a :class:`LearnedGuess` to start solves near their equilibrium.

    Adds ``loss_initial_guess = weight * ||z0 - z||^2 / ||z||^2``, the mean over the
    samples, to the losses. ``z0`` is the guess and ``z`` what was found: the
    equilibrium, or the last state of the unrolled mode. The loss is differentiated with
    respect to the parameters of the guess alone.

    A model that is trained already can learn a guess afterwards: ``freeze_rest=True``
    trains nothing else, runs the rest of the model as in inference, and keeps its
    weights and statistics as they are. With several processes the config needs
    ``find_unused_parameters=True`` then.

    Args:
        weight (float): Weight of the loss, positive. Defaults to 1.0.
        freeze_rest (bool): Whether the guess alone is trained. Defaults to False.

    Raises:
        ValueError: If ``weight`` is out of its range.

    Examples:
        >>> backbone = dict(type='MDEQ', initial_guess=dict(type='ProjectedGuess'))
        >>> default_hooks = dict(
        ...     equilibrium=dict(type='ImplicitGradientHook', pretrain_iters=3000),
        ...     initial_guess_loss=dict(type='InitialGuessLossHook'),
        ... )

        Afterwards, for a trained model:

        >>> load_from = 'epoch_12.pth'
        >>> default_hooks = dict(
        ...     equilibrium=dict(type='ImplicitGradientHook', pretrain_iters=0),
        ...     initial_guess_loss=dict(type='InitialGuessLossHook', freeze_rest=True),
        ... )
    """

    loss_name = 'loss_initial_guess'

    def __init__(self, weight: float = 1.0, freeze_rest: bool = False) -> None:
        super().__init__()
        check_number('weight', weight, above=0)
        self.weight = weight
        self.freeze_rest = freeze_rest

    def before_train(self, runner: Runner) -> None:
        """Says to the guesses that something trains them, and freezes the rest.

        Raises:
            ValueError: If the model has no learned initial guess.
        """
        super().before_train(runner)
        layers = _guessing_layers(runner.model)
        if not layers:
            raise ValueError(
                'InitialGuessLossHook needs a model with a learned initial guess, such '
                "as backbone=dict(type='MDEQ', "
                "initial_guess=dict(type='ProjectedGuess'))"
            )
        for layer in layers:
            guess = cast(LearnedGuess, layer.initial_guess)
            self.run_scope.enter_context(guess.supervision())
        if self.freeze_rest:
            guesses = [layer.initial_guess for layer in layers]
            self.run_scope.enter_context(_frozen_but(guesses, runner.model))

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Lets the loss in."""
        super().before_train_iter(runner, *args, **kwargs)
        if self.freeze_rest:
            # mmengine switches to training at the start of an epoch or after a test.
            runner.model.eval()
        self.open(runner.model, _guessing_layers(runner.model))

    def observe(
        self, layer: EquilibriumLayer, forward_pass: ForwardPass
    ) -> Optional[Tensor]:
        """Returns the error of the guess, a scalar."""
        takes_part = layer.training or self.freeze_rest
        if not (takes_part and forward_pass.guess.requires_grad):
            return None
        return relative_error(forward_pass.guess, forward_pass.state.detach())

    def loss(self, kept: list[Tensor], call: ModelCall) -> Tensor:
        """Returns the weighted mean over the passes."""
        return self.weight * torch.stack(kept).mean()


def relative_error(guess: Tensor, state: Tensor) -> Tensor:
    """Returns the mean over the samples of ``||guess - state||^2 / ||state||^2``."""
    squared_norm = state.square().sum(1).clamp_min(torch.finfo(state.dtype).tiny)
    return ((guess - state).square().sum(1) / squared_norm).mean()


@contextmanager
def _frozen_but(parts: Sequence[nn.Module], model: nn.Module) -> Iterator[None]:
    kept = {id(parameter) for part in parts for parameter in part.parameters()}
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in kept
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _guessing_layers(model: nn.Module) -> list[EquilibriumLayer]:
    return [
        layer
        for layer in equilibrium_layers(model)
        if isinstance(layer.initial_guess, LearnedGuess)
    ]
