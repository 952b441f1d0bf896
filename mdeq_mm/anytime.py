"""Predictions on a budget of evaluations, and early ones while a solve goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from .apis import single_layer, toolbox
from .deq import (
    Equilibrium,
    EquilibriumLayer,
    FixedPointFunction,
    FixedPointSolver,
    ForwardPass,
    Mode,
    Solution,
    SolveStatus,
    equilibrium_layers,
)
from .deq.checks import check_int
from .image_pipeline import Image, ImagePipeline


@contextmanager
def prediction_budget(
    model: nn.Module, max_evals: Optional[int] = None, tol: Optional[float] = None
) -> Iterator[None]:
    """Sets budget and tolerance of the forward solves while the context lasts.

    They hold in the calling thread, as all that :meth:`EquilibriumLayer.using`
    overrides. The other settings of the solver stay, and so do those of the adjoint
    solve.

    Args:
        model (nn.Module): A model with one equilibrium layer or several, each of which
            gets the budget.
        max_evals (int, optional): Evaluations of ``f`` at most, at least 1. Defaults to
            None, as configured.
        tol (float, optional): Residual, in the measure of the solver, at which an image
            stops before that. Defaults to None, as configured.

    Raises:
        ValueError: If the model has no equilibrium layer, if a layer does not solve
            because it is in the unrolled mode, or if an argument is out of its range.

    Examples:
        >>> import torch
        >>> from mdeq_mm.anytime import prediction_budget
        >>> from mdeq_mm.models import MDEQ
        >>> model = MDEQ(arch='tiny').eval()
        >>> with torch.no_grad(), prediction_budget(model, max_evals=6):
        ...     features = model(torch.rand(1, 3, 32, 32))
    """
    layers = equilibrium_layers(model)
    if not layers:
        single_layer(model)  # which says so
    changes: dict[str, Any] = {
        name: value
        for name, value in dict(max_evals=max_evals, tol=tol).items()
        if value is not None
    }
    modes = [equilibrium_of(layer) for layer in layers]
    solvers = [replace(mode.solver, **changes) for mode in modes]
    with ExitStack() as stack:
        for layer, mode, solver in zip(layers, modes, solvers):
            stack.enter_context(layer.using(mode=replace(mode, solver=solver)))
        yield


def equilibrium_of(layer: EquilibriumLayer) -> Equilibrium:
    """Returns how a layer solves.

    Raises:
        ValueError: If it does not solve, because it is in the unrolled mode.
    """
    mode = layer.mode
    if not isinstance(mode, Equilibrium):
        raise ValueError(
            f'model must be at the equilibrium, its mode is {mode}, in which no solver '
            'runs. A checkpoint of the unrolled phase of a training brings that mode '
            'with it; `layer.mode = layer.configured` makes the layer solve'
        )
    return mode


@dataclass(frozen=True)
class EarlyPrediction:
    """What a model predicts from a solve that may go on.

    Attributes:
        prediction (object): What ``predict`` has returned: a data sample.
        n_evals (int): Evaluations of ``f`` so far. With sliding windows it is those of
            the window that has taken most.
        residual (float): The residual of the state that the head was given, in the
            measure of the solver. With sliding windows it is the largest.
        is_final (bool): Whether the solve has ended, so that this is what the model
            predicts without pauses.
    """

    prediction: Any
    n_evals: int
    residual: float
    is_final: bool


def anytime(
    model: BaseModel,
    image: Any,
    at: Optional[Collection[int]] = None,
    predict: Optional[Callable[[BaseModel, Any], Any]] = None,
) -> Iterator[EarlyPrediction]:
    """Yields better and better predictions for an image while its solve goes on.

    Each one is made of the best state so far. The solve pauses for it and goes on when
    the next one is asked for. So all of them together take as many evaluations of ``f``
    as one prediction without pauses, and whoever stops early saves those that are left.
    Each prediction runs what lies around the equilibrium again: preprocessing, stem and
    head.

    Args:
        model (BaseModel): A model in evaluation mode with one equilibrium layer.
        image (object): What ``predict`` takes.
        at (Collection[int], optional): Numbers of the evaluations, counted from 1,
            after which to predict, as far as the solve gets. The end of the solve is
            always among them. Defaults to None, after each.
        predict (Callable, optional): Called as ``predict(model, image)``, such as
            ``mmseg.apis.inference_model``. It must do the same with each call. Defaults
            to None, :func:`predict_image`.

    Returns:
        Iterator[EarlyPrediction]: The predictions. The last one is what
        ``predict(model, image)`` returns.

    Raises:
        ValueError: If the model has no equilibrium layer or several, is in training
            mode, or is in the unrolled mode; or if an argument is out of its range.

    Examples:
        >>> import torch
        >>> from mdeq_mm.anytime import anytime
        >>> from mdeq_mm.models import MDEQ
        >>> def predict(model, image):
        ...     with torch.no_grad():
        ...         return model(image)
        >>> model = MDEQ(arch='tiny', forward_solver=dict(
        ...     type='BroydenSolver', max_evals=8, tol=0.0)).eval()
        >>> images = torch.rand(1, 3, 32, 32)
        >>> [early.n_evals for early in anytime(model, images, (2, 4), predict)]
        [2, 4, 8]
    """
    layer = single_layer(model)
    solver = equilibrium_of(layer).solver
    if layer.training:
        raise ValueError('model must be in evaluation mode, call model.eval() first')
    for number in at or ():
        check_int('at', number, 1)
    solves = _PausedSolves(solver, at)
    run = partial(predict or predict_image, model, image)
    return _predict_at_pauses(layer, solves, run)


def predict_image(model: BaseModel, image: Image, cfg: Optional[Config] = None) -> Any:
    """Predicts for one image with the test pipeline of a config.

    Args:
        model (BaseModel): The model of any toolbox, in evaluation mode.
        image (str, Path or np.ndarray): The file of the image, or the image itself as
            mmcv reads it: BGR, ``(H, W, 3)``.
        cfg (Config, optional): The config. Defaults to None, the one that
            ``mmseg.apis.init_model`` or ``mmpretrain.get_model`` has left in the model.

    Returns:
        DataSample: What the toolbox predicts for the image.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no config, it has no test pipeline, or the file cannot
            be read as an image.
    """
    if cfg is None:
        cfg = getattr(model, 'cfg', None) or getattr(model, '_config', None)
    if cfg is None:
        raise ValueError(
            'cfg must be the config of the model, which has none of its own, got None'
        )
    batch = ImagePipeline(cfg)(image)
    with toolbox(cfg), torch.no_grad():
        return model.test_step(batch)[0]


class _PausedSolves(Mode):
    """Goes on with the solves of the same passes, from one prediction to the next.

    The first prediction begins a solve in each pass through the layer. In each later
    one, a pass goes on with the solve of the pass that had its place.

    Args:
        solver (FixedPointSolver): The solver.
        at (Collection[int], optional): See :meth:`FixedPointSolver.pauses`.

    Attributes:
        solutions (list[Solution]): What the solves have found so far.
    """

    takes_reduced = True

    def __init__(self, solver: FixedPointSolver, at: Optional[Collection[int]]) -> None:
        self.solutions: list[Solution] = []
        self._solves: list[Iterator[Solution]] = []
        self._solver = solver
        self._at = at
        self._place = 0

    def begin(self) -> None:
        """Says that a prediction begins."""
        self._place = 0

    def run(
        self,
        forward_pass: ForwardPass,
        differentiate: bool,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    ) -> Tensor:
        """Returns the best state at the next pause, without a graph."""
        place, self._place = self._place, self._place + 1
        if place == len(self._solves):
            guess = forward_pass.guess.detach()
            self._solves.append(
                self._solver.pauses(
                    forward_pass.f, guess, self._at, restrict, forward_pass.reduced
                )
            )
            self.solutions.append(next(self._solves[place]))
        else:
            # A solve that has ended stays where it is.
            last = self.solutions[place]
            self.solutions[place] = next(self._solves[place], last)
        solution = replace(self.solutions[place], inverse_jacobian=None)
        forward_pass.solution = solution
        return solution.state


def _predict_at_pauses(
    layer: EquilibriumLayer, solves: _PausedSolves, predict: Callable[[], Any]
) -> Iterator[EarlyPrediction]:
    is_final = False
    while not is_final:
        solves.begin()
        # Nothing is overridden while the caller has the prediction.
        with layer.using(mode=solves):
            prediction = predict()
        if not solves.solutions:
            raise ValueError('predict must run the model, its layer was not called')
        status = torch.cat([solution.status for solution in solves.solutions])
        is_final = bool((status != SolveStatus.RUNNING).all())
        yield EarlyPrediction(
            prediction,
            max(int(solution.n_evals.max()) for solution in solves.solutions),
            max(float(solution.residual.max()) for solution in solves.solutions),
            is_final,
        )
