"""Cells that converge because their weights are bounded."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...checkpoints import is_sharded
from ...deq import project_weights
from ...deq.checks import check_number
from .base import find_layers


@HOOKS.register_module()
class SpectralProjectionHook(Hook):
    """Bounds the weights of the cells, before the training and after each iteration.

    Weights of convolutions and linear layers are scaled down to at most a spectral
    norm, and gains of norms are clipped (Sato and Iiduka, arXiv 2602.03297). With
    ``norm_type='MeanOnlyGroupNorm'``, ``residual_weight=0.5``, ``fusion_weight=0.3``
    and the defaults here, a :class:`MultiscaleCell` of two to four branches with 3x3
    kernels and ReLU is a contraction: it has one equilibrium, and Picard iteration
    finds it from any start. Dropout of a probability ``p`` divides by ``1 - p`` in
    training, which weakens the bound.

    Cells that do not train stay as they are. The averages of ``EMAHook`` are not
    projected, and may exceed the bounds. Nothing is kept between iterations.

    Args:
        max_norm (float): Largest spectral norm of a weight, above 0. Defaults to 0.5.
        max_gain (float): Largest absolute gain of a norm, above 0. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> arch = dict(
        ...     channels=(24, 24),
        ...     norm_type='MeanOnlyGroupNorm',
        ...     residual_weight=0.5,
        ...     fusion_weight=0.3,
        ... )
        >>> default_hooks = dict(projection=dict(type='SpectralProjectionHook'))
    """

    # Before hooks that average or save the weights.
    priority = 'ABOVE_NORMAL'

    def __init__(self, max_norm: float = 0.5, max_gain: float = 1.0) -> None:
        check_number('max_norm', max_norm, above=0)
        check_number('max_gain', max_gain, above=0)
        self.max_norm = max_norm
        self.max_gain = max_gain

    def before_train(self, runner: Runner) -> None:
        """Bounds the weights that the training starts from.

        Raises:
            ValueError: If the model has no equilibrium layer, or its weights are
                sharded or computed in a way that cannot be bounded.
        """
        if is_sharded(runner.model):
            raise ValueError(
                f'{type(self).__name__} needs whole weights, but those of the model '
                'are sharded'
            )
        self._project(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Bounds the weights that the optimiser has changed."""
        self._project(runner)

    def _project(self, runner: Runner) -> None:
        for layer in find_layers(runner.model, type(self).__name__):
            if any(parameter.requires_grad for parameter in layer.cell.parameters()):
                project_weights(layer.cell, self.max_norm, self.max_gain)
