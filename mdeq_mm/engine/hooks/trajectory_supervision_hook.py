"""Losses on intermediate states of the solver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional, Union

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import Equilibrium, EquilibriumLayer, ForwardPass
from ...deq.checks import check_int, check_number
from ...models import EquilibriumBackbone
from .base import ExtraLossHook, ModelCall, is_trained, unwrapped

Features = Sequence[Tensor]


@HOOKS.register_module()
class TrajectorySupervisionHook(ExtraLossHook):
    """Trains the states on the way to the equilibrium as well.

    The stock necks and heads compute their losses from the iterates of the solver at
    some of its evaluations. The weighted sum of these losses is ``loss_trajectory``. It
    makes a solve that is cut short useful, and draws the equilibrium near ("fixed-point
    correction", Bai et al., "Deep Equilibrium Optical Flow Estimation", CVPR 2022).

    An iterate is differentiated through one application of the cell. Each costs that
    application and its memory, and another run of the model behind the backbone, whose
    batch norms see the iterates too. If the model calls its backbone several times, as
    SimSiam does, each call is given iterates of its own. A call without gradients is
    given what it has returned.

    Evaluations that a solve does not reach are left out. In the unrolled mode nothing
    is added.

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
        >>> default_hooks = dict(
        ...     equilibrium=dict(type='ImplicitGradientHook', pretrain_iters=3000),
        ...     trajectory=dict(
        ...         type='TrajectorySupervisionHook', n_states=2, weight=0.5
        ...     ),
        ... )
    """

    loss_name = 'loss_trajectory'

    def __init__(
        self,
        supervise: Optional[Sequence[int]] = None,
        n_states: Optional[int] = None,
        weight: Union[float, Sequence[float]] = 1.0,
    ) -> None:
        super().__init__()
        if (supervise is None) == (n_states is None):
            raise ValueError(
                'exactly one of supervise and n_states must be given, '
                f'got {supervise!r} and {n_states!r}'
            )
        check_int('n_states', n_states, 1, optional=True)
        if supervise is not None:
            if not supervise:
                raise ValueError(f'supervise must not be empty, got {supervise!r}')
            for number in supervise:
                check_int('supervise', number, 1)
        count = n_states if supervise is None else len(supervise)
        assert count is not None  # one of the two is given
        weights = [weight] * count if isinstance(weight, (int, float)) else list(weight)
        if len(weights) != count:
            raise ValueError(f'weight must be one number or {count}, got {weight!r}')
        for value in weights:
            check_number('weight', value, least=0)
        self.supervise = None if supervise is None else tuple(supervise)
        self.weights = weights
        # By number of the evaluation, for this iteration.
        self._weight_of: dict[int, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Checks that the model can be trained so.

        Raises:
            ValueError: If its backbone is no :class:`EquilibriumBackbone`.
        """
        super().before_train(runner)
        _backbone(unwrapped(runner.model))

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Asks for the iterates."""
        super().before_train_iter(runner, *args, **kwargs)
        layer = _backbone(unwrapped(runner.model)).equilibrium
        mode = layer.mode
        if not (layer.training and isinstance(mode, Equilibrium)):
            return
        self._weight_of = {}
        for number, weight in zip(self._numbers(mode.solver.max_evals), self.weights):
            self._weight_of[number] = self._weight_of.get(number, 0.0) + weight
        self.iteration_scope.enter_context(layer.using(keep=tuple(self._weight_of)))
        self.open(runner.model, [layer])

    def _numbers(self, max_evals: int) -> tuple[int, ...]:
        """Returns the numbers of the evaluations, given the budget."""
        if self.supervise is not None:
            return self.supervise
        count = len(self.weights)  # n_states
        return tuple(
            max(round(max_evals * (index + 1) / (count + 1)), 1)
            for index in range(count)
        )

    def observe(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> _Record:
        """Returns the record of a call of the backbone."""
        return _Record(forward_pass, is_trained(layer, forward_pass))

    def loss(self, kept: list[_Record], call: ModelCall) -> Optional[Tensor]:
        """Returns the weighted sum over the evaluations."""
        numbers = [
            number
            for number in self._weight_of
            if all(record.reaches(number) for record in kept)
        ]
        if not numbers or not any(record.is_differentiated for record in kept):
            return None
        total: Any = 0.0
        for number in numbers:
            features = [record.features(number) for record in kept]
            with _replaying(call.model, features):
                losses = call.repeat()
            loss, _ = call.model.parse_losses(losses)
            total = total + self._weight_of[number] * loss
        return total


class _Record(NamedTuple):
    """One call of the backbone.

    Attributes:
        forward_pass (ForwardPass): The forward pass of its equilibrium layer.
        is_differentiated (bool): Whether its iterates are supervised.
    """

    forward_pass: ForwardPass
    is_differentiated: bool

    def reaches(self, number: int) -> bool:
        """Whether there is something to replay for the evaluation of this number."""
        solution = self.forward_pass.solution
        return not self.is_differentiated or (
            solution is not None and number in solution.iterates
        )

    def features(self, number: int) -> tuple[Tensor, ...]:
        """Returns the features to replay, one map per branch."""
        forward_pass = self.forward_pass
        solution = forward_pass.solution
        if not self.is_differentiated or solution is None:
            return forward_pass.layout.unpack(forward_pass.state.detach())
        return forward_pass.layout.unpack(forward_pass.f(solution.iterates[number]))


class _Replay(nn.Module):
    """Stands in for a backbone and returns recorded outputs, one per call."""

    def __init__(self, outputs: Iterable[tuple[Tensor, ...]]) -> None:
        super().__init__()
        self._outputs = iter(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        output = next(self._outputs, None)
        if output is None:
            raise RuntimeError(
                'TrajectorySupervisionHook runs the model again on the same images; it '
                'called its backbone more often than the first time'
            )
        return output


@contextmanager
def _replaying(model: nn.Module, features: Iterable[Features]) -> Iterator[None]:
    """Lets the backbone of a model return given features while the context lasts.

    Args:
        model (nn.Module): The model.
        features (Iterable[Sequence[Tensor]]): For each call one map per branch,
            ``(B, C_i, H_i, W_i)``.
    """
    backbone = _backbone(model)
    model.backbone = _Replay([backbone.select(maps) for maps in features])
    try:
        yield
    finally:
        model.backbone = backbone


def _backbone(model: nn.Module) -> EquilibriumBackbone:
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, EquilibriumBackbone):
        raise ValueError(
            'TrajectorySupervisionHook needs a model whose backbone is an '
            f'EquilibriumBackbone, such as MDEQ, got {type(backbone).__name__}'
        )
    return backbone
