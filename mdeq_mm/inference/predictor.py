"""The model of a config and all that a prediction for an image needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from os import PathLike
from typing import Any, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement

from ..apis import load_model, toolbox_of
from ..checkpoints import load_checkpoint
from ..deq import EquilibriumLayer, ForwardPass, equilibrium_layers
from ..deq.checks import check_choice
from ..image_pipeline import ImagePipeline
from ..visualization import paint

# Text on a smaller picture cannot be read.
LEAST_SIDE = 256


@dataclass(frozen=True)
class Solve:
    """What one solve took.

    Attributes:
        n_evals (int): Evaluations of ``f``.
        residual (float): Residual, in the measure of the solver.
        converged (bool): Whether it met the tolerance.
        from_zero (bool): Whether it started from zero.
        trace (tuple[float, ...]): Residual at each evaluation.
    """

    n_evals: int
    residual: float
    converged: bool
    from_zero: bool
    trace: tuple[float, ...]

    def __str__(self) -> str:
        reached = 'reached' if self.converged else 'not reached'
        return (
            f'{self.n_evals} evaluations, residual {self.residual:.2g}, '
            f'tolerance {reached}'
        )


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        sample (BaseDataElement): The data sample of the toolbox.
        solves (tuple[Solve, ...]): The solves of equilibria: one, but several with
            sliding windows, and none in the unrolled mode or another backbone.
    """

    sample: BaseDataElement
    solves: tuple[Solve, ...]

    @property
    def labels(self) -> np.ndarray:
        """The class of each pixel, ``(H, W)``, of a segmentation."""
        return self.sample.pred_sem_seg.data[0].cpu().numpy()


class Predictor:
    """Predicts images with the model of a config, one after the other.

    An image goes through the pipeline of testing, without the transforms that load
    files. No file of a data set is read.

    Args:
        cfg (Config): Config of a segmentor of MMSegmentation or a classifier of
            MMPretrain.
        checkpoint (str or Path): The checkpoint.
        device (str, optional): Where to put the model. Defaults to None, the
            accelerator if there is one, else the CPU.
        allow_partial (bool): Whether a checkpoint may lack weights of the model, or
            have others. Defaults to False.

    Attributes:
        model (BaseModel): The model, in evaluation mode.
        toolbox (str): ``'mmseg'`` or ``'mmpretrain'``.
        classes (Sequence[str], optional): Names of the classes, those of the checkpoint
            or else of the config, None if neither names them.
        palette (Sequence[Sequence[int]]): RGB colour of each class of a segmentor.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the config is for another toolbox, has no data set for testing
            with a pipeline, or does not go with the checkpoint.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: Union[str, PathLike[str]],
        device: Optional[str] = None,
        allow_partial: bool = False,
    ) -> None:
        self.toolbox = toolbox_of(cfg)
        check_choice('default_scope', self.toolbox, ('mmseg', 'mmpretrain'))
        self._pipeline = ImagePipeline(cfg)
        self.model: BaseModel = load_model(cfg, checkpoint, device, allow_partial)
        meta = {**self._pipeline.metainfo, **_dataset_meta_of(checkpoint)}
        self.classes: Optional[Sequence[str]] = meta.get('classes')
        self.palette: Sequence[Sequence[int]] = meta.get('palette') or ()

    def read(self, path: Union[str, PathLike[str]]) -> np.ndarray:
        """Reads an image file as the pipeline does.

        Returns:
            np.ndarray: The image, BGR, uint8, ``(H, W, 3)``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be read as an image.
        """
        return self._pipeline.read(path)

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Returns the batch of one image that the pipeline makes.

        Args:
            image (np.ndarray): The image, BGR, uint8, ``(H, W, 3)``.
        """
        return self._pipeline(image)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Prediction:
        """Predicts an image.

        Args:
            image (np.ndarray): The image, BGR, uint8, ``(H, W, 3)``.
        """
        solves: list[Solve] = []

        def observe(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
            solution = forward_pass.solution
            if solution is not None:
                solves.append(
                    Solve(
                        n_evals=int(solution.n_evals.max()),
                        residual=solution.residual.max().item(),
                        converged=bool(solution.converged.all()),
                        from_zero=not forward_pass.guess.any(),
                        trace=tuple(solution.trace.amax(dim=1).tolist()),
                    )
                )

        with ExitStack() as observed:
            for layer in equilibrium_layers(self.model):
                observed.enter_context(layer.observing(observe))
            (sample,) = self.model.test_step(self.prepare(image))
        return Prediction(sample, tuple(solves))

    def shares(
        self, prediction: Prediction, n_classes: int = 5
    ) -> list[tuple[str, float]]:
        """Returns the classes that matter most, by name, the largest share first.

        The share is the score of a classifier, or the part of the pixels that a
        segmentor gives to the class.

        Args:
            prediction (Prediction): The prediction.
            n_classes (int): Number of classes at most. Defaults to 5.
        """
        if self.toolbox == 'mmseg':
            labels = prediction.labels.astype(np.int64)
            shares = np.bincount(labels.ravel()) / labels.size
        else:
            shares = prediction.sample.pred_score.cpu().numpy()
        order = [int(k) for k in np.argsort(-shares, kind='stable')[:n_classes]]
        return [(self._name(k), float(shares[k])) for k in order if shares[k] > 0]

    def draw(self, image: np.ndarray, prediction: Prediction) -> np.ndarray:
        """Lays a segmentation over its image, or writes label and score on it.

        Args:
            image (np.ndarray): The image, BGR, uint8, ``(H, W, 3)``.
            prediction (Prediction): The prediction.

        Returns:
            np.ndarray: RGB image, uint8: that of a segmentation in the size of the
            image, that of a classification with sides of at least 256 pixels.
        """
        image = image[..., ::-1]
        if self.toolbox == 'mmseg':
            return paint(image, prediction.labels, self.palette)
        visualizer: Any = VISUALIZERS.get('mmpretrain.UniversalVisualizer')
        return visualizer().visualize_cls(
            np.ascontiguousarray(image),
            prediction.sample,
            classes=self.classes,
            draw_gt=False,
            resize=max(min(image.shape[:2]), LEAST_SIDE),
        )

    @property
    def colours(self) -> dict[str, Sequence[int]]:
        """RGB colour of each class of a segmentor, by name."""
        names = map(str, count()) if self.classes is None else self.classes
        return dict(zip(names, self.palette))

    def _name(self, number: int) -> str:
        return str(number) if self.classes is None else self.classes[number]


def _dataset_meta_of(checkpoint: Union[str, PathLike[str]]) -> dict[str, Any]:
    """Returns what a checkpoint says of the classes it was trained on."""
    content = load_checkpoint(checkpoint)
    return (content.get('meta') or {}).get('dataset_meta') or {}
