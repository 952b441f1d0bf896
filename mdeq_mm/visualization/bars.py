"""Bar charts of measured ratios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Union

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_bars(
    values: Mapping[str, Mapping[str, float]],
    path: Union[str, Path],
    label: str,
    title: str = '',
    reference: float = 1.0,
) -> None:
    """Draws groups of horizontal bars, each with its value.

    Args:
        values (Mapping[str, Mapping[str, float]]): For each group the value of each
            bar. Bars of the same name have the same colour.
        path (str or Path): File to write. Its ending decides the format.
        label (str): Label of the axis of values.
        title (str): Title of the plot. Defaults to ''.
        reference (float): Value to mark with a line. Defaults to 1.0.
    """
    names = list(dict.fromkeys(name for bars in values.values() for name in bars))
    height = 0.8 / len(names)
    figure = Figure(
        figsize=(7, 1 + 0.3 * len(names) * len(values)), layout='constrained'
    )
    axes = figure.subplots()
    for number, name in enumerate(names):
        groups = [group for group, bars in values.items() if name in bars]
        places = [list(values).index(group) + number * height for group in groups]
        lengths = [values[group][name] for group in groups]
        bars = axes.barh(places, lengths, height * 0.9, label=name)
        axes.bar_label(bars, fmt='%.2f', padding=2, fontsize=8)
    axes.axvline(reference, color='black', linewidth=0.8)
    middle = (len(names) - 1) * height / 2
    axes.set_yticks([place + middle for place in range(len(values))], list(values))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    axes.set_title(title)
    figure.legend(loc='outside right upper', fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
