"""Plots of how solves converge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

LABELS = {
    'abs': r'absolute residual $\|f(z)-z\|$',
    'rel': r'relative residual $\|f(z)-z\|\,/\,\|f(z)\|$',
}


def plot_convergence(
    trace: Tensor,
    path: Union[str, Path],
    title: str = '',
    tol: Optional[float] = None,
    max_evals: Optional[int] = None,
    stop_mode: str = 'rel',
) -> None:
    """Writes the picture of :func:`convergence_figure` to a file.

    Args:
        trace (Tensor): Residual at each evaluation, ``(n, B)``.
        path (str or Path): File to write. Its ending decides the format.
        title (str): Title of the plot. Defaults to ''.
        tol (float, optional): Tolerance to mark. Defaults to None.
        max_evals (int, optional): Budget to mark. Defaults to None.
        stop_mode (str): Measure of the residual. Defaults to ``'rel'``.
    """
    figure = convergence_figure(trace, title, tol, max_evals, stop_mode)
    figure.savefig(path, dpi=150)


def convergence_figure(
    trace: Tensor,
    title: str = '',
    tol: Optional[float] = None,
    max_evals: Optional[int] = None,
    stop_mode: str = 'rel',
) -> Figure:
    """Draws the residual against the evaluations of ``f``, one line per sample.

    A solid line is the best residual so far, which counts because solvers return the
    best iterate. The residuals themselves are drawn pale behind it.

    Args:
        trace (Tensor): Residual at each evaluation, ``(n, B)``, as in
            :attr:`Solution.trace`.
        title (str): Title of the plot. Defaults to ''.
        tol (float, optional): Tolerance to mark. Defaults to None.
        max_evals (int, optional): Budget to mark. Defaults to None.
        stop_mode (str): Measure of the residual, as that of the solver: ``'abs'`` or
            ``'rel'``. Defaults to ``'rel'``.

    Returns:
        Figure: The picture, which belongs to no window.
    """
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    draw_convergence(axes, trace, tol, max_evals, stop_mode)
    axes.set_title(title)
    FigureCanvasAgg(figure)
    return figure


def draw_convergence(
    axes: Axes,
    trace: Tensor,
    tol: Optional[float] = None,
    max_evals: Optional[int] = None,
    stop_mode: str = 'rel',
    names: Sequence[str] = (),
) -> None:
    """Draws the lines of :func:`convergence_figure` into axes.

    Args:
        axes (Axes): The axes.
        trace (Tensor): See :func:`convergence_figure`.
        tol (float, optional): The same. Defaults to None.
        max_evals (int, optional): The same. Defaults to None.
        stop_mode (str): The same. Defaults to ``'rel'``.
        names (Sequence[str]): Name of each line. Defaults to (), no names.
    """
    residuals = trace.detach().cpu().numpy()
    best = np.minimum.accumulate(residuals, axis=0)
    evals = np.arange(1, len(residuals) + 1)
    marker = 'o' if len(evals) == 1 else None  # a line needs two points
    for line, pale in zip(
        axes.plot(evals, best, linewidth=1.2, marker=marker),
        axes.plot(evals, residuals, alpha=0.3, linewidth=0.8),
    ):
        pale.set_color(line.get_color())
    if tol is not None:
        axes.axhline(tol, color='black', linestyle='--', linewidth=0.8)
        # Lines fall, so there is room at their beginning.
        axes.annotate(f'tolerance {tol:g}', (1, tol), va='bottom', fontsize=9)
    if max_evals is not None and max_evals < len(residuals):
        axes.axvline(max_evals, color='black', linestyle=':', linewidth=0.8)
        axes.annotate(
            f' budget {max_evals}', (max_evals, best.max()), va='top', fontsize=9
        )
    axes.set_yscale('log')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel('evaluations of $f$')
    axes.set_ylabel(LABELS[stop_mode])
    axes.grid(alpha=0.3)
    if names:
        axes.legend(axes.lines[: len(names)], names, fontsize=8)
