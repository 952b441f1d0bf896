"""What a model loses when it gets fewer evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from statistics import median
from typing import Any, Optional

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from ..anytime import prediction_budget
from ..apis import single_layer, solving_mode
from ..deq import EquilibriumLayer, ForwardPass
from ..deq.checks import check_int, check_number
from .timing import Stopwatch


@dataclass(frozen=True)
class BudgetedTest:
    """What a test with a budget of evaluations has given.

    Attributes:
        max_evals (int): The budget.
        metrics (dict[str, float]): What the evaluators of the config say, by name, as
            far as they are numbers.
        n_evals (float): Mean number of evaluations per image. Images that converge take
            fewer than the budget.
        residual (float): Mean residual of the returned states, in the measure of the
            solver.
        seconds (float): Seconds per image of an iteration of the test, which is nearly
            all the model's: the median over the batches. On CUDA that is the time of
            the device, elsewhere processor time. Loading of data does not count.
    """

    max_evals: int
    metrics: dict[str, float]
    n_evals: float
    residual: float
    seconds: float


def accuracy_at_budgets(
    runner: Runner, budgets: Sequence[int] = (), tol: Optional[float] = None
) -> Iterator[BudgetedTest]:
    """Tests a model once per budget, with loop, evaluators and hooks of its runner.

    Args:
        runner (Runner): The runner, which has not run yet. Its model has one
            equilibrium layer.
        budgets (Sequence[int]): Budgets. That of the model is always added. Defaults to
            (), no others.
        tol (float, optional): Tolerance. Defaults to None, that of the model.

    Yields:
        BudgetedTest: What a test has given, from the smallest budget to the largest.

    Raises:
        ValueError: If an argument is out of its range, if the model has no equilibrium
            layer or several, or if the checkpoint is of the unrolled phase.
    """
    for max_evals in budgets:
        check_int('budgets', max_evals, 1)
    check_number('tol', tol, least=0, optional=True)
    own = solving_mode(single_layer(runner.model)).solver.max_evals
    observation = _Observation(tol)
    runner.register_hook(observation, 'VERY_LOW')
    has_run = False
    for max_evals in sorted({own, *budgets}):
        with observation.of_budget(max_evals):
            # One run loads the checkpoint. With another one some hooks, as that of
            # averaged weights, would begin anew without it.
            metrics = runner.test_loop.run() if has_run else runner.test()
        has_run = True
        yield observation.result(metrics)


class _Observation(Hook):
    """Keeps a budget during a test, and numbers of its passes.

    Args:
        tol (float, optional): Tolerance. Defaults to None, that of the model.
    """

    def __init__(self, tol: Optional[float]) -> None:
        self._tol = tol
        self._max_evals = 1
        self._scope = ExitStack()
        self._n_evals: list[Tensor] = []
        self._residuals: list[Tensor] = []
        self._seconds: list[float] = []

    def of_budget(self, max_evals: int) -> ExitStack:
        """Prepares for a test; the context ends what it begins."""
        self._max_evals = max_evals
        self._scope = ExitStack()
        self._n_evals, self._residuals, self._seconds = [], [], []
        return self._scope

    def before_test(self, runner: Runner) -> None:
        """Begins the observation. By now the checkpoint has been loaded."""
        model = runner.model
        self._watch = Stopwatch(next(model.parameters()).device)
        budget = prediction_budget(model, self._max_evals, self._tol)
        self._scope.enter_context(budget)
        handle = single_layer(model).register_pass_hook(self._observe)
        self._scope.enter_context(handle)

    def before_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Begins to measure the time of an iteration."""
        self._watch.start()

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[Sequence[Any]] = None,
    ) -> None:
        """Takes down the time of an iteration."""
        self._seconds.append(self._watch.stop() / (len(outputs or ()) or 1))

    def result(self, metrics: dict[str, Any]) -> BudgetedTest:
        """Returns what the test has given."""
        return BudgetedTest(
            self._max_evals,
            {k: float(v) for k, v in metrics.items() if isinstance(v, Real)},
            torch.cat(self._n_evals).double().mean().item(),
            torch.cat(self._residuals).double().mean().item(),
            median(self._seconds),
        )

    def _observe(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        if forward_pass.solution is not None:
            self._n_evals.append(forward_pass.solution.n_evals)
            self._residuals.append(forward_pass.solution.residual)
