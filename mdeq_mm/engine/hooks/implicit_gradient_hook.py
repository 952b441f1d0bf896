"""The one hook that every run of an equilibrium model needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .activation_checkpointing import check_activation_checkpointing
from .base import find_layers
from .equilibrium_schedule import EquilibriumSchedule
from .metric_observation import MetricObservation
from .solve_statistics import SolveStatistics


def _each(stage: str) -> Callable[..., None]:
    """Makes the method of a stage, which calls that of every part."""

    def call(self: ImplicitGradientHook, *args: Any, **kwargs: Any) -> None:
        for part in self.parts:
            getattr(part, stage)(*args, **kwargs)

    call.__name__ = stage
    call.__doc__ = f'Calls ``{stage}`` of every part.'
    return call


@HOOKS.register_module()
class ImplicitGradientHook(Hook):
    """Trains a model unrolled first and then at the equilibrium, and says how it goes.

    It is the one hook that a config names. It consists of three parts, each of which
    does one thing.

    :class:`EquilibriumSchedule` decides how the layers are trained. A fresh cell is
    seldom a contraction, so the papers begin with ``num_layers`` plain applications of
    it under ordinary backpropagation (MDEQ paper, section 4). The mode follows from
    ``runner.iter``, so resuming needs nothing else. Validation uses the mode of the
    last training iteration, and a checkpoint carries it. Layers that do not train keep
    their own mode.

    :class:`SolveStatistics` adds these statistics to every logged iteration. They cover
    all iterations at the equilibrium since the one logged before, in the main process.
    Nothing is taken from the device in between.

    - ``forward_evals``, ``forward_evals_max``: evaluations per sample, mean and max;
    - ``forward_residual``, ``forward_residual_max``: residual per sample in the measure
      of the solver, mean and max;
    - ``forward_converged``: share of the samples that met the tolerance;
    - ``forward_breakdown``: share of the iterations in which a solve met NaN or Inf;
    - ``adjoint_...``: the same for the adjoint solve, where there is one.

    If all iterations since the line before were unrolled, a line has the first two
    alone. Both are then ``num_layers``.

    It warns of a breakdown and of a mean relative residual above ``warn_residual``,
    once each.

    :class:`MetricObservation` shows the model to the metrics of the equilibrium.

    Args:
        pretrain_iters (int): Unrolled training iterations, not negative. Defaults to 0.
        pretrain_epochs (int): The same in epochs; at most one of the two can be set.
            Defaults to 0.
        phases (Sequence[dict]): Settings from some training iteration on. Each has
            ``begin``, the number of iterations before it, and a ``forward_solver``, a
            ``gradient`` or both. They replace those of the model until the next phase
            begins; what a phase does not name is as in the model. Defaults to ().
        warn_residual (float, optional): Mean residual relative to the norm of the
            state, over the iterations from one log to the next, above which a warning
            is given. Defaults to 0.1. None for never.

    Raises:
        TypeError: If a phase has unknown or missing keys.
        ValueError: If an argument is out of its range, or the phases are not in order.

    Examples:
        >>> default_hooks = dict(
        ...     equilibrium=dict(type='ImplicitGradientHook', pretrain_iters=3000)
        ... )
        >>> # Phantom gradients for 10,000 iterations, the implicit gradient after them,
        >>> # in a config that inherits the hook:
        >>> phantom = dict(type='PhantomGradient', steps=5, damping=0.5)
        >>> default_hooks = dict(
        ...     equilibrium=dict(
        ...         pretrain_iters=3000,
        ...         phases=[dict(begin=0, gradient=phantom), dict(begin=13000)],
        ...     )
        ... )
    """

    # Before the hooks of extra losses, which depend on the mode, and before LoggerHook,
    # which collects the statistics (both BELOW_NORMAL).
    priority = 'NORMAL'

    def __init__(
        self,
        pretrain_iters: int = 0,
        pretrain_epochs: int = 0,
        phases: Sequence[dict] = (),
        warn_residual: Optional[float] = 0.1,
    ) -> None:
        self.parts: tuple[Hook, ...] = (
            EquilibriumSchedule(pretrain_iters, pretrain_epochs, phases),
            SolveStatistics(warn_residual),
            MetricObservation(),
        )

    def before_run(self, runner: Runner) -> None:
        """Checks that there is something to do and calls every part.

        Raises:
            ValueError: If the config asks for a model without equilibrium layer.
        """
        try:
            find_layers(runner.model, type(self).__name__)
        except ValueError as error:
            if runner.cfg.get('model') is not None:
                raise
            # A tool may run the rest of a config with a model of its own.
            runner.logger.warning('%s. The hook does nothing', error)
        for part in self.parts:
            part.before_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Checks what the config asks for and calls every part.

        Raises:
            ValueError: If ``activation_checkpointing`` of mmengine is asked for where
                it cannot work.
        """
        check_activation_checkpointing(runner)
        for part in self.parts:
            part.before_train(runner)

    before_train_iter = _each('before_train_iter')
    after_train_iter = _each('after_train_iter')
    after_train = _each('after_train')
    before_val = _each('before_val')
    before_val_iter = _each('before_val_iter')
    after_val_iter = _each('after_val_iter')
    before_test = _each('before_test')
    before_test_iter = _each('before_test_iter')
    after_test_iter = _each('after_test_iter')
    after_load_checkpoint = _each('after_load_checkpoint')
