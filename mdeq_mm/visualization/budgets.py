"""Plots of what a model gives at each budget of evaluations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Optional, Union

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..benchmark import BudgetedTest
from .convergence import LABELS


def plot_budgets(
    tests: Sequence[BudgetedTest],
    path: Union[str, Path],
    title: str = '',
    metrics: Optional[Collection[str]] = None,
    mark: Optional[int] = None,
    stop_mode: str = 'rel',
) -> None:
    """Draws metrics, residual and time against the budget of evaluations.

    Args:
        tests (Sequence[BudgetedTest]): The tests.
        path (str or Path): File to write. Its ending decides the format.
        title (str): Title of the plot. Defaults to ''.
        metrics (Collection[str], optional): Names of the metrics to draw. Defaults to
            None, all of them.
        mark (int, optional): Budget to mark, that of the config. Defaults to None.
        stop_mode (str): Measure of the residual, as that of the solver: ``'abs'`` or
            ``'rel'``. Defaults to ``'rel'``.

    Raises:
        ValueError: If there is no metric of one of the names.
    """
    names = list(tests[0].metrics) if metrics is None else list(metrics)
    for name in names:
        if name not in tests[0].metrics:
            raise ValueError(
                f'metrics must be among {", ".join(tests[0].metrics)}, got {name}'
            )
    budgets = [test.max_evals for test in tests]
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    accuracy, residual, seconds = figure.subplots(1, 3)
    for name in names:
        values = [test.metrics[name] for test in tests]
        accuracy.plot(budgets, values, marker='o', markersize=4, label=name)
    accuracy.set_ylabel('metric of the test set')
    accuracy.legend(fontsize=8)
    _draw(residual, budgets, [test.residual for test in tests])
    residual.set_yscale('log')
    residual.set_ylabel(f'mean {LABELS[stop_mode]}')
    _draw(seconds, budgets, [1000 * test.seconds for test in tests])
    seconds.set_ylabel('milliseconds per image')
    seconds.set_ylim(bottom=0)
    for axes in (accuracy, residual, seconds):
        axes.set_xlabel('evaluations of $f$ at most')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if mark is not None:
            axes.axvline(mark, color='black', linestyle=':', linewidth=0.8)
    figure.suptitle(title)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, budgets: Sequence[int], values: Sequence[float]) -> None:
    axes.plot(budgets, values, marker='o', markersize=4, color='black', linewidth=1.2)
