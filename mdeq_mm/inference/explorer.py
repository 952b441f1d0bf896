"""Predictions of which a visitor chooses image, tolerance and budget."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from threading import Lock
from typing import Optional, Union

import numpy as np
import torch
from matplotlib.figure import Figure

from ..anytime import equilibrium_of, prediction_budget
from ..apis import single_layer
from ..deq.checks import check_int, check_number
from ..visualization import convergence_figure, css_colour
from .predictor import Predictor, Solve
from .uploads import UploadLimits

# What a visitor may ask for.
MOST_EVALS = 100
LEAST_TOL, MOST_TOL = 1e-6, 1.0
# Classes in the legend.
NUM_CLASSES = dict(mmseg=20, mmpretrain=5)

_ROW = (
    '<div style="display:flex;align-items:center;gap:.5em;margin:.15em 0">'
    '<span style="width:7em;overflow-wrap:anywhere">{name}</span>'
    '<span style="flex:1"><span style="display:block;height:.9em;min-width:.9em;'
    'width:{share:.2%};background:{colour};border:1px solid gray"></span></span>'
    '<span style="width:4em;text-align:right">{share:.1%}</span></div>'
)


@dataclass(frozen=True)
class Exploration:
    """What a model says of an image within a tolerance and a budget.

    Attributes:
        picture (np.ndarray): RGB image, uint8: the segmentation laid over the image, or
            the image with label and score.
        legend (str): The classes that matter most with their share of the pixels or
            their score, as HTML, with the colours of a segmentation.
        summary (str): Evaluations, residual, and whether the tolerance was reached.
        figure (Figure): The residual against the evaluations.
    """

    picture: np.ndarray
    legend: str
    summary: str
    figure: Figure


class Explorer:
    """Predicts image files with a tolerance and a budget per call.

    One image is predicted at a time: a call from another thread waits.

    Args:
        predictor (Predictor): A segmentor or a classifier with one equilibrium layer.
        limits (UploadLimits, optional): What is taken of image files. Defaults to None,
            the limits that this class has without arguments.

    Attributes:
        tol (float): The tolerance as configured, from 1e-6 to 1.
        max_evals (int): The budget as configured, at most 100.

    Raises:
        ValueError: If the model has no equilibrium layer or several, or is of the
            unrolled phase of a training.
    """

    def __init__(
        self, predictor: Predictor, limits: Optional[UploadLimits] = None
    ) -> None:
        solver = equilibrium_of(single_layer(predictor.model)).solver
        self.tol = min(max(solver.tol, LEAST_TOL), MOST_TOL)
        self.max_evals = min(solver.max_evals, MOST_EVALS)
        self._stop_mode = solver.stop_mode
        self._predictor = predictor
        self._limits = limits or UploadLimits()
        self._lock = Lock()

    def __call__(
        self, path: Union[str, PathLike[str]], tol: float, max_evals: int
    ) -> Exploration:
        """Predicts an image.

        Args:
            path (str or Path): The file of the image.
            tol (float): Residual at which the solve stops, from 1e-6 to 1.
            max_evals (int): Evaluations of ``f`` at most, from 1 to 100.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If an argument is out of its range, the file is refused, or the
                model cannot take an image of that size.
        """
        check_number('tol', tol, least=LEAST_TOL, most=MOST_TOL)
        check_int('max_evals', max_evals, 1)
        check_number('max_evals', max_evals, most=MOST_EVALS)
        self._limits.check(path)
        predictor = self._predictor
        with self._lock:
            image = predictor.read(path)
            with prediction_budget(predictor.model, max_evals, tol):
                prediction = predictor(image)
            shares = predictor.shares(prediction, NUM_CLASSES[predictor.toolbox])
            return Exploration(
                predictor.draw(image, prediction),
                shares_as_html(shares, predictor.colours),
                _summary(prediction.solves),
                convergence_figure(
                    _traces(prediction.solves), tol=tol, stop_mode=self._stop_mode
                ),
            )


def shares_as_html(
    shares: Sequence[tuple[str, float]], colours: Mapping[str, Sequence[int]]
) -> str:
    """Writes classes, one below the other, with a bar as long as their share.

    Args:
        shares (Sequence[tuple[str, float]]): Name and share of each class.
        colours (Mapping[str, Sequence[int]]): RGB colour of a class by name, 0 to 255.
            A class without one gets a gray bar.
    """
    rows = [
        _ROW.format(
            name=html.escape(name),
            share=share,
            colour=css_colour(colours.get(name, (128,) * 3)),
        )
        for name, share in shares
    ]
    return ''.join(rows)


def _summary(solves: Sequence[Solve]) -> str:
    """Returns what the longest solve took. There are several with sliding windows."""
    longest = max(solves, key=lambda solve: (solve.n_evals, solve.residual))
    if len(solves) == 1:
        return str(longest)
    return f'{len(solves)} windows, at most {longest}'


def _traces(solves: Sequence[Solve]) -> torch.Tensor:
    """Returns the traces side by side. One that has ended keeps its last value."""
    length = max(len(solve.trace) for solve in solves)
    return torch.tensor(
        [
            solve.trace + solve.trace[-1:] * (length - len(solve.trace))
            for solve in solves
        ]
    ).T
