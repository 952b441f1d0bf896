"""Shows the equilibrium to the metrics that look at it."""

from __future__ import annotations

from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import nn

from ...deq import equilibrium_layers
from ...evaluation import EquilibriumMetric
from .base import EquilibriumHook


class MetricObservation(EquilibriumHook):
    """Lets every :class:`EquilibriumMetric` observe the model in its own iterations.

    A metric sees the forward passes between the beginning and the end of an iteration
    of its validation or test, and no others.
    """

    def before_val(self, runner: Runner) -> None:
        """Lets the metrics of the validation begin anew."""
        for metric in _metrics(runner.val_evaluator):
            metric.reset()

    def before_test(self, runner: Runner) -> None:
        """Lets the metrics of the test begin anew."""
        for metric in _metrics(runner.test_evaluator):
            metric.reset()

    def before_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Starts the observation by the metrics of the validation."""
        super().before_val_iter(runner, *args, **kwargs)
        self._observe(runner.model, runner.val_evaluator)

    def before_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Starts the observation by the metrics of the test."""
        super().before_test_iter(runner, *args, **kwargs)
        self._observe(runner.model, runner.test_evaluator)

    def _observe(self, model: nn.Module, evaluator: Evaluator) -> None:
        layers = equilibrium_layers(model)
        for metric in _metrics(evaluator):
            self.iteration_scope.enter_context(metric.observing(layers))


def _metrics(evaluator: Evaluator) -> list[EquilibriumMetric]:
    return [m for m in evaluator.metrics if isinstance(m, EquilibriumMetric)]
