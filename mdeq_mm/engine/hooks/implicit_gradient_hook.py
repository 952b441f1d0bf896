"""Schedule and statistics of the equilibrium."""

from __future__ import annotations

from typing import Any, Optional

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import EquilibriumLayer, Solution, SolveStatus


@HOOKS.register_module()
class ImplicitGradientHook(Hook):
    """Trains with a shallow unrolled cell first, then at the equilibrium.

    A fresh cell is seldom a contraction, so the papers begin with ``num_layers`` plain
    applications of it under ordinary backpropagation (MDEQ paper, section 4). The phase
    follows from ``runner.iter``, so resuming needs nothing else. Validation uses the
    phase of the last training iteration, and a checkpoint carries its phase with it
    into ``tools/test.py``.

    At the equilibrium these scalars of each training iteration go to the message hub,
    and from there to every log: ``forward_evals`` and ``forward_residual``, means over
    the batch of evaluations and of residuals of the solve; ``forward_converged``, the
    share of samples that met the tolerance; ``backward_evals`` and
    ``backward_residual``, the same of the adjoint solve where there is one. The first
    NaN or Inf in a solve is said as a warning.

    Args:
        pretrain_iters (int): Training iterations in the shallow mode, not negative.
            Defaults to 0.

    Raises:
        ValueError: If ``pretrain_iters`` is negative.

    Examples:
        >>> custom_hooks = [dict(type='ImplicitGradientHook', pretrain_iters=3000)]
    """

    # The scalars must be there when LoggerHook (BELOW_NORMAL) collects them.
    priority = 'NORMAL'

    META_KEY = 'mdeq_shallow'

    def __init__(self, pretrain_iters: int = 0) -> None:
        if not isinstance(pretrain_iters, int) or pretrain_iters < 0:
            raise ValueError(
                'pretrain_iters must be an integer of at least 0, '
                f'got {pretrain_iters!r}'
            )
        self.pretrain_iters = pretrain_iters
        self._solutions: list[Solution] = []
        self._warned = False

    def before_train(self, runner: Runner) -> None:
        """Starts to observe the solves."""
        layers = _equilibrium_layers(runner.model)
        if not layers:
            raise ValueError(
                'ImplicitGradientHook needs a model with an EquilibriumLayer, such as '
                f"backbone=dict(type='MDEQ'); {type(runner.model).__name__} has none"
            )
        for layer in layers:
            layer.register_forward_hook(self._observer())

    def _observer(self) -> Any:
        solutions = self._solutions

        # A plain function: a bound method would be deep-copied along with the model.
        def observe(layer: nn.Module, args: Any, output: Any) -> None:
            solution: Optional[Solution] = output[1]
            if layer.training and solution is not None:
                solutions.append(solution)

        return observe

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Decides between the shallow mode and the equilibrium."""
        shallow = runner.iter < self.pretrain_iters
        for layer in _equilibrium_layers(runner.model):
            if layer.shallow != shallow:
                runner.logger.info(
                    'MDEQ trains %s from iteration %d on',
                    'in the shallow mode' if shallow else 'at the equilibrium',
                    runner.iter + 1,
                )
            layer.shallow = shallow
        self._solutions.clear()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Publishes the statistics of this iteration's solves."""
        if not self._solutions:
            return
        status = torch.cat([solution.status for solution in self._solutions])
        adjoints = [s.adjoint for s in self._solutions if s.adjoint is not None]
        scalars = _statistics('forward', self._solutions)
        scalars['forward_converged'] = (status == SolveStatus.CONVERGED).float().mean()
        if adjoints:
            scalars.update(_statistics('backward', adjoints))
        scalars['broken'] = (status == SolveStatus.BROKEN_DOWN).float().sum()
        self._solutions.clear()

        # One transfer from the device for all of them.
        values = torch.stack([value.float() for value in scalars.values()]).tolist()
        published = dict(zip(scalars, values))
        n_broken = int(published.pop('broken'))
        if n_broken and not self._warned:
            self._warned = True
            runner.logger.warning(
                'the equilibrium solve of %d of %d samples met NaN or Inf in iteration '
                '%d and kept their best iterates; this is said once',
                n_broken,
                len(status),
                runner.iter + 1,
            )
        for name, value in published.items():
            runner.message_hub.update_scalar(f'train/{name}', value)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Writes the mode into the checkpoint."""
        layers = _equilibrium_layers(runner.model)
        checkpoint['meta'][self.META_KEY] = any(layer.shallow for layer in layers)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes over the mode of the checkpoint; without one, the equilibrium."""
        shallow = checkpoint.get('meta', {}).get(self.META_KEY, False)
        for layer in _equilibrium_layers(runner.model):
            layer.shallow = shallow


def _equilibrium_layers(model: nn.Module) -> list[EquilibriumLayer]:
    return [
        module for module in model.modules() if isinstance(module, EquilibriumLayer)
    ]


def _statistics(name: str, solutions: list[Solution]) -> dict[str, Tensor]:
    n_evals = torch.cat([solution.n_evals for solution in solutions])
    residual = torch.cat([solution.residual for solution in solutions])
    finite = residual.isfinite()
    mean_residual = residual.where(finite, residual.new_zeros(())).sum() / finite.sum()
    return {
        f'{name}_evals': n_evals.float().mean(),
        f'{name}_residual': mean_residual.nan_to_num(0),
    }
