"""Plots of the evaluations that the frames of a video take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_evaluations(
    lines: Mapping[str, Sequence[int]],
    path: Union[str, Path],
    cuts: Sequence[int] = (),
    max_evals: Optional[int] = None,
    title: str = '',
) -> None:
    """Draws the evaluations of ``f`` per frame.

    Args:
        lines (Mapping[str, Sequence[int]]): For each name the evaluations of each
            frame.
        path (str or Path): File to write. Its ending decides the format.
        cuts (Sequence[int]): Numbers of the frames to mark as those that begin anew.
            Defaults to ().
        max_evals (int, optional): Budget to mark. Defaults to None.
        title (str): Title of the plot. Defaults to ''.
    """
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(range(len(values)), values, drawstyle='steps-mid', label=name)
    for number, cut in enumerate(cuts):
        label = None if number else 'cut'
        axes.axvline(cut, color='black', linestyle='--', linewidth=0.8, label=label)
    if max_evals is not None:
        axes.axhline(
            max_evals, color='black', linestyle=':', linewidth=0.8, label='budget'
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel('frame')
    axes.set_ylabel('evaluations of $f$')
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=4, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
