"""Losses on intermediate states of the solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import EquilibriumLayer
from ...deq.layer import Solve
from ...models import MDEQ
from .utils import unwrapped


@HOOKS.register_module()
class TrajectorySupervisionHook(Hook):
    """Trains the states on the way to the equilibrium as well.

    The stock necks and heads compute their losses from the iterates of the solver at
    some of its evaluations; their weighted sum enters the losses as
    ``loss_trajectory``. It makes a solve that is cut short useful, and draws the
    equilibrium near ("fixed-point correction", Bai et al., "Deep Equilibrium Optical
    Flow Estimation", CVPR 2022).

    An iterate is differentiated through one application of the cell. Each costs that
    application and its memory, and another pass of the heads, whose batch norms see
    the iterates too. Evaluations that a solve does not reach are left out, and in the
    shallow mode nothing is added.

    Args:
        supervise (Sequence[int], optional): Numbers of the evaluations, counted from 1.
            Defaults to None; either this or ``n_states`` is given.
        n_states (int, optional): As many evaluations, evenly spread over the budget of
            the forward solver without its end. Defaults to None.
        weight (float or Sequence[float]): Weight of every loss, or one for each,
            not negative. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> custom_hooks = [
        ...     dict(type='ImplicitGradientHook', pretrain_iters=3000),
        ...     dict(type='TrajectorySupervisionHook', n_states=2, weight=0.5),
        ... ]
    """

    # After ImplicitGradientHook has decided on the phase.
    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        supervise: Optional[Sequence[int]] = None,
        n_states: Optional[int] = None,
        weight: Union[float, Sequence[float]] = 1.0,
    ) -> None:
        if (supervise is None) == (n_states is None):
            raise ValueError(
                'exactly one of supervise and n_states must be given, '
                f'got {supervise!r} and {n_states!r}'
            )
        if n_states is not None and (not isinstance(n_states, int) or n_states < 1):
            raise ValueError(
                f'n_states must be an integer of at least 1, got {n_states!r}'
            )
        if supervise is not None and (
            not supervise or not all(isinstance(n, int) and n >= 1 for n in supervise)
        ):
            raise ValueError(
                f'supervise must hold integers of at least 1, got {supervise!r}'
            )
        count = n_states if supervise is None else len(supervise)
        weights = [weight] * count if isinstance(weight, (int, float)) else list(weight)
        if len(weights) != count or not all(w >= 0 for w in weights):
            raise ValueError(
                f'weight must be one number or {count}, not negative, got {weight!r}'
            )
        self.supervise = None if supervise is None else tuple(supervise)
        self.n_states = n_states
        self.weights = weights
        self._weight_of: dict[int, float] = {}

    def _evaluations(self, layer: EquilibriumLayer) -> tuple[int, ...]:
        if self.supervise is not None:
            return self.supervise
        budget = layer.solver.max_evals
        return tuple(
            max(round(budget * (index + 1) / (self.n_states + 1)), 1)
            for index in range(self.n_states)
        )

    def before_train(self, runner: Runner) -> None:
        """Registers what keeps the iterates and what adds the loss."""
        model = unwrapped(runner.model)
        backbone = getattr(model, 'backbone', None)
        if not isinstance(backbone, MDEQ):
            raise ValueError(
                'TrajectorySupervisionHook needs a model whose backbone is an MDEQ, '
                f'got {type(backbone).__name__}'
            )
        # Plain functions: bound methods would be deep-copied along with the model.
        weight_of = self._weight_of
        features: dict[int, tuple[Tensor, ...]] = {}

        def keep(layer: EquilibriumLayer, solve: Solve) -> None:
            features.clear()
            if not layer.training or solve.solution is None:
                return
            if not torch.is_grad_enabled():
                return
            for number, iterate in solve.solution.iterates.items():
                features[number] = solve.layout.unpack(solve.f(iterate))

        def add_loss(module: nn.Module, args: Any, kwargs: dict, output: Any) -> Any:
            if not features or not isinstance(output, dict):
                return output
            total = 0.0
            for number, states in features.items():
                with backbone.replay(states):
                    losses = module.forward(*args, **kwargs)
                total = total + weight_of[number] * module.parse_losses(losses)[0]
            features.clear()
            return {**output, 'loss_trajectory': total}

        backbone.equilibrium.register_solve_hook(keep)
        model.register_forward_hook(add_loss, with_kwargs=True)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Asks for the iterates."""
        layer = unwrapped(runner.model).backbone.equilibrium
        self._weight_of.clear()
        for evaluation, weight in zip(self._evaluations(layer), self.weights):
            self._weight_of[evaluation] = self._weight_of.get(evaluation, 0) + weight
        layer.keep = tuple(self._weight_of)
