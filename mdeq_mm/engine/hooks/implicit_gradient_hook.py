"""Schedule and statistics of the equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...deq import (
    EquilibriumGradient,
    FixedPointSolver,
    Solution,
)
from ...deq.builder import build
from ...evaluation import EquilibriumMetric
from .statistics_sum import StatisticsSum
from .utils import equilibrium_layers


@HOOKS.register_module()
class ImplicitGradientHook(Hook):
    """Trains with a shallow unrolled cell first, then at the equilibrium.

    A fresh cell is seldom a contraction, so the papers begin with ``num_layers`` plain
    applications of it under ordinary backpropagation (MDEQ paper, section 4). The phase
    follows from ``runner.iter``, so resuming needs nothing else. Validation uses the
    phase of the last training iteration, and a checkpoint carries its phase with it
    into ``tools/test.py``.

    With each logged iteration these statistics of all iterations at the equilibrium
    since the one logged before go to the message hub, and from there to every log.
    Nothing is taken from the device in between. They are those of the main process.

    - ``forward_evals``, ``forward_evals_max``: evaluations of a sample, mean and max;
    - ``forward_residual``, ``forward_residual_max``: residual of a sample in the
      measure of the solver;
    - ``forward_converged``: share of the samples that met the tolerance;
    - ``forward_breakdown``: share of the iterations in which a solve met NaN or Inf;
    - ``backward_...``: the same for the adjoint solve, where there is one.

    A breakdown, and a mean relative residual above ``warn_residual``, are said as a
    warning, once each.

    Args:
        pretrain_iters (int): Training iterations in the shallow mode, not negative.
            Defaults to 0.
        pretrain_epochs (int): The same in epochs; at most one of the two can be set.
            Defaults to 0.
        phases (Sequence[dict]): Settings from some training iteration on. Each has
            ``begin``, the number of iterations before it, and a ``forward_solver``, a
            ``gradient`` or both, which replace those of the model until the next phase
            begins; what a phase does not name is as in the model. Defaults to ().
        warn_residual (float, optional): Mean residual relative to the norm of the
            state, over the iterations from one log to the next, above which a warning
            is given. Defaults to 0.1. None for never.

    Raises:
        TypeError: If a phase has unknown or missing keys.
        ValueError: If an argument is out of its range, or the phases are not in order.

    Examples:
        >>> custom_hooks = [dict(type='ImplicitGradientHook', pretrain_iters=3000)]
        >>> # Phantom gradients for 10,000 iterations, the implicit gradient after them:
        >>> phantom = dict(type='PhantomGradient', steps=5, damping=0.5)
        >>> custom_hooks = [
        ...     dict(
        ...         type='ImplicitGradientHook',
        ...         pretrain_iters=3000,
        ...         phases=[dict(begin=0, gradient=phantom), dict(begin=13000)],
        ...     )
        ... ]
    """

    # The scalars must be there when LoggerHook (BELOW_NORMAL) collects them.
    priority = 'NORMAL'

    META_KEY = 'mdeq_shallow'

    def __init__(
        self,
        pretrain_iters: int = 0,
        pretrain_epochs: int = 0,
        phases: Sequence[dict] = (),
        warn_residual: Optional[float] = 0.1,
    ) -> None:
        for name, value in (
            ('pretrain_iters', pretrain_iters),
            ('pretrain_epochs', pretrain_epochs),
        ):
            if not isinstance(value, int) or value < 0:
                raise ValueError(
                    f'{name} must be an integer of at least 0, got {value!r}'
                )
        if pretrain_iters and pretrain_epochs:
            raise ValueError(
                'at most one of pretrain_iters and pretrain_epochs can be set, '
                f'got {pretrain_iters} and {pretrain_epochs}'
            )
        if warn_residual is not None and not warn_residual > 0:
            raise ValueError(
                f'warn_residual must be positive or None, got {warn_residual!r}'
            )
        self.pretrain_iters = pretrain_iters
        self.pretrain_epochs = pretrain_epochs
        self.warn_residual = warn_residual
        self.phases = [_build_phase(phase) for phase in phases]
        begins = [phase['begin'] for phase in self.phases]
        if begins != sorted(set(begins)):
            raise ValueError(f'phases must begin one after the other, got {begins}')
        self._configured: list[tuple[FixedPointSolver, EquilibriumGradient]] = []
        self._solutions: list[tuple[Solution, str]] = []
        self._forward = StatisticsSum('forward')
        self._backward = StatisticsSum('backward')
        self._said: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        """Notes the solvers and gradients of the model."""
        layers = equilibrium_layers(runner.model)
        if not layers:
            raise ValueError(
                'ImplicitGradientHook needs a model with an EquilibriumLayer, such as '
                f"backbone=dict(type='MDEQ'); {type(runner.model).__name__} has none"
            )
        # A second run of the same runner may find those of a phase.
        if not self._configured:
            self._configured = [(layer.solver, layer.gradient) for layer in layers]

    def before_train(self, runner: Runner) -> None:
        """Starts to observe the solves."""
        for layer in equilibrium_layers(runner.model):
            layer.register_forward_hook(self._observer())

    def _observer(self) -> Any:
        solutions = self._solutions

        # A plain function: a bound method would be deep-copied along with the model.
        def observe(layer: nn.Module, args: Any, output: Any) -> None:
            solution: Optional[Solution] = output[1]
            if layer.training and solution is not None:
                solutions.append((solution, layer.solver.stop_mode))

        return observe

    def n_pretrain_iters(self, runner: Runner) -> int:
        """Returns how many training iterations are in the shallow mode."""
        if self.pretrain_epochs:
            return self.pretrain_epochs * len(runner.train_dataloader)
        return self.pretrain_iters

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Decides on the phase."""
        shallow = runner.iter < self.n_pretrain_iters(runner)
        for layer in equilibrium_layers(runner.model):
            if layer.shallow != shallow:
                runner.logger.info(
                    'MDEQ trains %s from iteration %d on',
                    'in the shallow mode' if shallow else 'at the equilibrium',
                    runner.iter + 1,
                )
            layer.shallow = shallow
        self._enter_phase(runner, runner.iter)
        self._solutions.clear()

    def _enter_phase(self, runner: Runner, iteration: int) -> None:
        """Sets solvers and gradients to those of an iteration, counted from 0."""
        phase = dict()
        for candidate in self.phases:
            if candidate['begin'] <= iteration:
                phase = candidate
        layers = equilibrium_layers(runner.model)
        for layer, (solver, gradient) in zip(layers, self._configured):
            solver = phase.get('forward_solver', solver)
            gradient = phase.get('gradient', gradient)
            if layer.solver is not solver or layer.gradient is not gradient:
                runner.logger.info(
                    'MDEQ uses %r and %r from iteration %d on',
                    solver,
                    gradient,
                    iteration + 1,
                )
            layer.solver, layer.gradient = solver, gradient

    def after_train_iter(
        self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        """Adds up the statistics, and publishes them in iterations that are logged."""
        if self._solutions:
            self._forward.add(self._solutions)
            adjoints = [
                (solution.adjoint, mode)
                for solution, mode in self._solutions
                if solution.adjoint is not None
            ]
            if adjoints:
                self._backward.add(adjoints)
            self._solutions.clear()
        if not _is_logged(runner, batch_idx):
            return
        for statistics in (self._forward, self._backward):
            if statistics.n_steps == 0:
                continue
            values = statistics.take()
            self._warn(runner, statistics.name, values)
            for name, value in values.items():
                if name != 'relative_residual':
                    runner.message_hub.update_scalar(
                        f'train/{statistics.name}_{name}', value
                    )

    def _warn(self, runner: Runner, name: str, values: dict[str, float]) -> None:
        if values['breakdown'] > 0 and 'breakdown' not in self._said:
            self._said.add('breakdown')
            runner.logger.warning(
                'a %s solve met NaN or Inf in %.0f %% of the iterations up to %d and '
                'kept the best iterates of the samples; this is said once',
                name,
                100 * values['breakdown'],
                runner.iter + 1,
            )
        degraded = (
            name == 'forward'
            and self.warn_residual is not None
            and values['relative_residual'] > self.warn_residual
        )
        if degraded and 'residual' not in self._said:
            self._said.add('residual')
            runner.logger.warning(
                'the equilibrium is not reached: the mean relative residual up to '
                'iteration %d is %.3g, more than warn_residual=%g. Longer shallow '
                'pre-training, a larger max_evals or JacobianRegularizationHook '
                'help; this is said once',
                runner.iter + 1,
                values['relative_residual'],
                self.warn_residual,
            )

    def before_val(self, runner: Runner) -> None:
        """Lets the metrics that look at the equilibrium see it."""
        _observe(runner.val_evaluator, runner.model)

    def before_test(self, runner: Runner) -> None:
        """Lets the metrics that look at the equilibrium see it."""
        _observe(runner.test_evaluator, runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Writes the mode into the checkpoint."""
        layers = equilibrium_layers(runner.model)
        checkpoint['meta'][self.META_KEY] = any(layer.shallow for layer in layers)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes over the phase of the checkpoint; without one, the equilibrium."""
        meta = checkpoint.get('meta', {})
        for layer in equilibrium_layers(runner.model):
            layer.shallow = meta.get(self.META_KEY, False)
        if self.META_KEY in meta and meta.get('iter'):
            # meta counts the iterations that are done; the last one decides.
            self._enter_phase(runner, meta['iter'] - 1)


def _build_phase(phase: dict) -> dict:
    allowed = {'begin', 'forward_solver', 'gradient'}
    if not isinstance(phase, dict) or not {'begin'} <= set(phase) <= allowed:
        raise TypeError(
            "a phase must be a dict with the key 'begin' and, if wanted, "
            f'forward_solver and gradient, got {phase!r}'
        )
    phase = dict(phase)
    if not isinstance(phase['begin'], int) or phase['begin'] < 0:
        raise ValueError(
            f'begin must be an integer of at least 0, got {phase["begin"]!r}'
        )
    for name, base in (
        ('forward_solver', FixedPointSolver),
        ('gradient', EquilibriumGradient),
    ):
        if name in phase:
            phase[name] = build(phase[name], base, f'phases.{name}')
    return phase


def _observe(evaluator: Evaluator, model: nn.Module) -> None:
    for metric in evaluator.metrics:
        if isinstance(metric, EquilibriumMetric):
            metric.observe(equilibrium_layers(model))


def _is_logged(runner: Runner, batch_idx: int) -> bool:
    """Whether a LoggerHook writes the scalars of this iteration."""
    for hook in runner.hooks:
        if not isinstance(hook, LoggerHook):
            continue
        length = len(runner.train_dataloader)
        if hook.every_n_inner_iters(batch_idx, hook.interval) or (
            hook.end_of_epoch(runner.train_dataloader, batch_idx)
            and (not hook.ignore_last or length <= hook.interval)
        ):
            return True
    return False
