"""What a report shows of one image."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np

from ..apis import single_layer, solving_mode
from ..deq import EquilibriumLayer, FixedPointSolver, ForwardPass
from ..deq.builder import build
from ..visualization import ReportCase, examine, picture_input
from .predictor import Predictor


def examine_image(
    predictor: Predictor, image: np.ndarray, solver: Optional[FixedPointSolver] = None
) -> ReportCase:
    """Predicts an image and looks at the solve of its equilibrium.

    A model in the unrolled mode is solved for as it is configured, for the prediction,
    too.

    Args:
        predictor (Predictor): The predictor of a model with one equilibrium layer.
        image (np.ndarray): The image, BGR, uint8, ``(H, W, 3)``.
        solver (FixedPointSolver, optional): Solver of the forward pass. Defaults to
            None, that of the model.

    Returns:
        ReportCase: The prediction, and how the solve went.

    Raises:
        ValueError: If the model has no equilibrium layer or several, or passes the
            image through it in several parts.
    """
    layer = single_layer(predictor.model)
    mode = solving_mode(layer)
    if solver is not None:
        mode = replace(mode, solver=solver)
    passes: list[ForwardPass] = []

    def observe(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        passes.append(forward_pass)

    with layer.observing(observe), layer.using(mode=mode):
        prediction = predictor(image)
    if len(passes) != 1:
        raise ValueError(
            "an image must take one pass, as with model.test_cfg.mode='whole', "
            f'got {len(passes)}'
        )
    seen = picture_input(predictor.prepare(image)['inputs'][0])
    return ReportCase(
        examine(layer, passes[0], image=seen, linearize=True),
        predictor.draw(image, prediction),
        predictor.shares(prediction),
        predictor.colours,
    )


def solver_named(name: str, like: FixedPointSolver) -> FixedPointSolver:
    """Returns a solver of another type with the same budget, tolerance and measure.

    Args:
        name (str): Name of the type, as registered.
        like (FixedPointSolver): The solver to compare with. It is returned if its type
            has that name.

    Raises:
        ValueError: If there is no solver of that name.
    """
    if name == type(like).__name__:
        return like
    shared = ('max_evals', 'tol', 'stop_mode', 'returns')
    settings = {key: getattr(like, key) for key in shared}
    return build(dict(settings, type=name), FixedPointSolver, 'solver')
