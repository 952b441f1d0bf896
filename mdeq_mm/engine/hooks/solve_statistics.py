"""Statistics of the solves in the logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from mmengine.hooks import LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from ...deq import (
    Equilibrium,
    EquilibriumLayer,
    ForwardPass,
    Solution,
    SolveStatus,
    Unrolled,
    equilibrium_layers,
)
from ...deq.checks import check_number
from .base import EquilibriumHook, is_trained, weakly


class SolveNumbers(NamedTuple):
    """What is kept of one solve: numbers, never its states.

    Attributes:
        n_evals (Tensor): Evaluations per sample, ``(B,)``.
        residual (Tensor): Residual per sample in the measure of the solver, ``(B,)``.
        scale (Tensor): What a residual is divided by to be relative to the state,
            ``(B,)``.
        status (Tensor): :class:`SolveStatus` per sample, ``(B,)``.
    """

    n_evals: Tensor
    residual: Tensor
    scale: Tensor
    status: Tensor

    @classmethod
    def of(cls, solution: Solution, stop_mode: str) -> SolveNumbers:
        """Takes them from a solution, given the ``stop_mode`` of its solver."""
        if stop_mode == 'abs':
            scale = torch.linalg.vector_norm(solution.state, dim=1)
        else:
            scale = torch.ones_like(solution.residual)
        return cls(solution.n_evals, solution.residual, scale, solution.status)


class SolveSums:
    """Sums over the solves of several iterations, kept on the device until wanted.

    Attributes:
        n_iters (int): Iterations that were added since the sums were last taken.
    """

    def __init__(self) -> None:
        self.n_iters = 0
        self._sums: Optional[Tensor] = None
        self._maxima: Optional[Tensor] = None

    def add(self, solves: Sequence[SolveNumbers]) -> None:
        """Adds the solves of one iteration, at least one."""
        parts = [torch.cat(column) for column in zip(*solves)]
        n_evals, residual, scale = (part.float() for part in parts[:3])
        status = parts[3]
        finite = residual.isfinite()
        residual = residual.where(finite, residual.new_zeros(()))
        sums = torch.stack(
            [
                torch.ones_like(residual).sum(),
                n_evals.sum(),
                finite.float().sum(),
                residual.sum(),
                (residual / (scale + 1e-8)).sum(),
                (status == SolveStatus.CONVERGED).float().sum(),
                (status == SolveStatus.BROKEN_DOWN).any().float(),
            ]
        )
        maxima = torch.stack([n_evals.max(), residual.max()])
        if self._sums is not None and self._maxima is not None:
            sums = sums + self._sums
            maxima = torch.maximum(maxima, self._maxima)
        self._sums, self._maxima = sums, maxima
        self.n_iters += 1

    def take(self) -> dict[str, float]:
        """Returns the statistics, in one transfer from the device, and starts anew.

        Raises:
            RuntimeError: If nothing was added.
        """
        if self._sums is None or self._maxima is None:
            raise RuntimeError('there are no solves to take statistics of')
        samples, evals, finite, residual, relative, converged, broken, *maxima = (
            torch.cat([self._sums, self._maxima]).tolist()
        )
        finite = max(finite, 1)
        values = dict(
            evals=evals / samples,
            evals_max=maxima[0],
            residual=residual / finite,
            residual_max=maxima[1],
            relative_residual=relative / finite,
            converged=converged / samples,
            breakdown=broken / self.n_iters,
        )
        self._sums = self._maxima = None
        self.n_iters = 0
        return values


class SolveStatistics(EquilibriumHook):
    """Writes how the solves of the training converge into the logs.

    It observes the layers that train or pass gradients on, from the beginning of a
    training iteration to its end. :class:`ImplicitGradientHook` says what it logs and
    what it warns about.

    Args:
        warn_residual (float, optional): See :class:`ImplicitGradientHook`.
            Defaults to 0.1.

    Raises:
        ValueError: If ``warn_residual`` is out of its range.
    """

    # The scalars must be there when LoggerHook (BELOW_NORMAL) collects them.
    priority = 'NORMAL'

    def __init__(self, warn_residual: Optional[float] = 0.1) -> None:
        super().__init__()
        check_number('warn_residual', warn_residual, above=0, optional=True)
        self.warn_residual = warn_residual
        self._solves: dict[str, list[SolveNumbers]] = {}
        self._sums: dict[str, SolveSums] = {}
        # Evaluations and samples of each unrolled pass.
        self._unrolled: list[tuple[int, int]] = []
        self._said: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Starts with empty sums."""
        super().before_train(runner)
        self._sums = dict(forward=SolveSums(), adjoint=SolveSums())
        self._unrolled = []

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Starts to observe the layers."""
        super().before_train_iter(runner, *args, **kwargs)
        self._solves = dict(forward=[], adjoint=[])
        for layer in equilibrium_layers(runner.model):
            handle = layer.register_pass_hook(weakly(self._note))
            self.iteration_scope.enter_context(handle)

    def _note(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        solution, mode = forward_pass.solution, forward_pass.mode
        if not (layer.trains or is_trained(layer, forward_pass)):
            return
        if isinstance(mode, Unrolled):
            self._unrolled.append((mode.num_layers, len(forward_pass.state)))
        if solution is None:
            return
        stop_mode = mode.solver.stop_mode if isinstance(mode, Equilibrium) else 'rel'
        self._solves['forward'].append(SolveNumbers.of(solution, stop_mode))
        # The pass holds on to this function, which must hold on to numbers alone.
        adjoints = self._solves['adjoint']
        forward_pass.register_adjoint_hook(
            lambda adjoint: adjoints.append(SolveNumbers.of(adjoint, 'rel'))
        )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        """Adds up the numbers, and publishes them in iterations that are logged."""
        for name, solves in self._solves.items():
            if solves:
                self._sums[name].add(solves)
        self._solves = {}
        if _is_logged(runner, batch_idx):
            if self._unrolled and not self._sums['forward'].n_iters:
                self._publish_unrolled(runner)
            self._unrolled = []
            for name, sums in self._sums.items():
                if sums.n_iters:
                    self._publish(runner, name, sums.take())
        super().after_train_iter(runner, batch_idx, *args, **kwargs)

    def _publish_unrolled(self, runner: Runner) -> None:
        """Says the evaluations, so that a plot of them begins with the first line."""
        evals, samples = zip(*self._unrolled)
        total = sum(n_evals * n for n_evals, n in self._unrolled)
        mean = total / max(sum(samples), 1)
        runner.message_hub.update_scalar('train/forward_evals', mean)
        runner.message_hub.update_scalar('train/forward_evals_max', max(evals))

    def _publish(self, runner: Runner, name: str, values: dict[str, float]) -> None:
        relative_residual = values.pop('relative_residual')
        for key, value in values.items():
            runner.message_hub.update_scalar(f'train/{name}_{key}', value)
        if values['breakdown'] > 0 and 'breakdown' not in self._said:
            self._said.add('breakdown')
            runner.logger.warning(
                'the %s solve of some sample met NaN or Inf in %.0f %% of the '
                'iterations up to %d. Such a sample keeps its best iterate. This is '
                'said once',
                name,
                100 * values['breakdown'],
                runner.iter + 1,
            )
        is_degraded = (
            name == 'forward'
            and self.warn_residual is not None
            and relative_residual > self.warn_residual
        )
        if is_degraded and 'residual' not in self._said:
            self._said.add('residual')
            runner.logger.warning(
                'the equilibrium is not reached: the mean relative residual up to '
                'iteration %d is %.3g, more than warn_residual=%g. More '
                'pretrain_iters, a larger max_evals or JacobianRegularizationHook '
                'help. This is said once',
                runner.iter + 1,
                relative_residual,
                self.warn_residual,
            )


def _is_logged(runner: Runner, batch_idx: int) -> bool:
    """Whether a LoggerHook will write the scalars of this iteration.

    mmengine does not tell other hooks, so this repeats the rule of LoggerHook.
    """
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
