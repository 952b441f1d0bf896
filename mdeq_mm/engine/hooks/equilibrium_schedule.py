"""Which mode the equilibrium layers are in, by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

from mmengine.hooks import Hook
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from torch import nn

from ...deq import (
    EquilibriumGradient,
    EquilibriumLayer,
    FixedPointSolver,
    equilibrium_layers,
)
from ...deq.builder import build
from ...deq.checks import check_int

UNROLLED_ITERS = 'mdeq_unrolled_iters'


class EquilibriumSchedule(Hook):
    """Sets the mode of the equilibrium layers that train.

    They are unrolled first and then at the equilibrium, with the solver and gradient of
    the phase that the iteration falls into. The mode follows from ``runner.iter``
    alone. A running average of the weights within the model, such as the target network
    of BYOL, takes the mode of what it averages. Other layers that do not train, such as
    a frozen teacher, keep their own.

    The state dict carries whether a layer is unrolled. The phase of a checkpoint is
    that of its last training iteration.

    ``message_hub`` holds the number of unrolled iterations as the info
    ``mdeq_unrolled_iters``.

    Args:
        pretrain_iters (int): See :class:`ImplicitGradientHook`. Defaults to 0.
        pretrain_epochs (int): The same. Defaults to 0.
        phases (Sequence[dict]): The same. Defaults to ().

    Raises:
        TypeError: If a phase has unknown or missing keys.
        ValueError: If an argument is out of its range, or the phases are not in order.
    """

    # Checkpoints say by this key of their meta data whether the layers were unrolled,
    # if they were written before the state dict did.
    LEGACY_KEY = 'mdeq_shallow'

    def __init__(
        self,
        pretrain_iters: int = 0,
        pretrain_epochs: int = 0,
        phases: Sequence[dict] = (),
    ) -> None:
        check_int('pretrain_iters', pretrain_iters, 0)
        check_int('pretrain_epochs', pretrain_epochs, 0)
        if pretrain_iters and pretrain_epochs:
            raise ValueError(
                'at most one of pretrain_iters and pretrain_epochs can be set, '
                f'got {pretrain_iters} and {pretrain_epochs}'
            )
        self.pretrain_iters = pretrain_iters
        self.pretrain_epochs = pretrain_epochs
        self._phases = [_build_phase(phase) for phase in phases]
        begins = [begin for begin, _ in self._phases]
        if begins != sorted(set(begins)):
            raise ValueError(f'phases must begin one after the other, got {begins}')
        self._announced: Optional[tuple] = None

    def before_train(self, runner: Runner) -> None:
        """Publishes the number of unrolled iterations."""
        self._announced = None
        # It follows from the config, so a checkpoint need not hold it.
        runner.message_hub.update_info(
            UNROLLED_ITERS, self._n_unrolled(runner), resumed=False
        )

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Sets the mode of the layers that train."""
        unrolled = runner.iter < self._n_unrolled(runner)
        settings = {} if unrolled else self._settings(runner.iter)
        is_new = (unrolled, settings) != self._announced
        self._announced = unrolled, settings
        averages = _averages(runner.model)
        for layer in equilibrium_layers(runner.model):
            if not (layer.trains or layer in averages):
                continue
            mode = layer.unrolled if unrolled else replace(layer.configured, **settings)
            layer.mode = mode
            if is_new and layer not in averages:
                runner.logger.info(
                    'MDEQ trains %s from iteration %d on: %r',
                    'unrolled' if unrolled else 'at the equilibrium',
                    runner.iter + 1,
                    mode,
                )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Sets the phase of the checkpoint.

        mmengine calls it before it loads the state dict, which then decides whether a
        layer is unrolled if it says so.
        """
        meta = checkpoint.get('meta', {})
        # meta counts the iterations that are done; the last one decides.
        settings = self._settings(meta.get('iter', 0) - 1)
        unrolled = meta.get(self.LEGACY_KEY, False)
        averages = _averages(runner.model)
        for layer in equilibrium_layers(runner.model):
            # The model may be in evaluation mode by now, so trains says nothing.
            trains = any(parameter.requires_grad for parameter in layer.parameters())
            if trains or layer in averages:
                mode = replace(layer.configured, **settings)
                layer.mode = layer.unrolled if unrolled else mode

    def _n_unrolled(self, runner: Runner) -> int:
        """Returns how many training iterations are unrolled."""
        if self.pretrain_epochs:
            return self.pretrain_epochs * len(runner.train_dataloader)
        return self.pretrain_iters

    def _settings(self, iteration: int) -> dict[str, Any]:
        """Returns what an iteration, counted from 0, changes of the configured mode."""
        settings: dict[str, Any] = {}
        for begin, changed in self._phases:
            if begin <= iteration:
                settings = changed
        return settings


def _averages(model: nn.Module) -> set[EquilibriumLayer]:
    """Returns the layers that hold a running average of the weights of others."""
    return {
        layer
        for module in model.modules()
        if isinstance(module, BaseAveragedModel)
        for layer in equilibrium_layers(module)
    }


def _build_phase(phase: Any) -> tuple[int, dict[str, Any]]:
    """Returns the first iteration of a phase and what it changes of the mode."""
    allowed = {'begin', 'forward_solver', 'gradient'}
    if not isinstance(phase, dict) or not {'begin'} <= set(phase) <= allowed:
        raise TypeError(
            "a phase must be a dict with the key 'begin' and, if wanted, "
            f'forward_solver and gradient, got {phase!r}'
        )
    check_int('begin', phase['begin'], 0)
    changed: dict[str, Any] = {}
    if 'forward_solver' in phase:
        changed['solver'] = build(
            phase['forward_solver'], FixedPointSolver, 'phases.forward_solver'
        )
    if 'gradient' in phase:
        changed['gradient'] = build(
            phase['gradient'], EquilibriumGradient, 'phases.gradient'
        )
    return phase['begin'], changed
