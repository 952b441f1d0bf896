"""A whole model as one function from images to logits."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Optional, Union

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..apis import single_layer
from ..deq import EquilibriumLayer, PreviousGuess, Unrolled, ZeroGuess
from ..deq.parts import fold_parametrizations
from .fixed_evaluations import FixedEvaluations


class DeployedNetwork(nn.Module):
    """A segmentor or a classifier as a function of a batch of images alone.

    It works on a copy of the model: in evaluation mode, without gradients, with folded
    weights and an uncompiled cell. What the data preprocessor does to each pixel is
    part of it: the order of the channels and the normalisation. Its padding is not.
    Neither is the state of the frame before, so ``PreviousGuess`` becomes
    ``ZeroGuess``.

    Args:
        model (BaseModel): A segmentor, which has ``encode_decode``, or a classifier,
            which has a ``head``, with one equilibrium layer.
        mode (FixedEvaluations or Unrolled): What the layer does.

    Attributes:
        kind (str): ``'segmentor'`` or ``'classifier'``.
        evals (int): Evaluations that each image takes.
        method (str): Name of the solver, or ``'Unrolled'``.
        dynamic (tuple[str, ...]): What may differ from one run of an exported file to
            another: ``'batch'``, the number of images; and ``'size'``, their height and
            width, unless a part has ``align_corners=True``. For these MMSegmentation
            makes integers of the sizes, which an exporter takes for constants.

    Raises:
        TypeError: If the model is neither a segmentor nor a classifier.
        ValueError: If it has no equilibrium layer or several.
    """

    def __init__(
        self, model: BaseModel, mode: Union[FixedEvaluations, Unrolled]
    ) -> None:
        super().__init__()
        self.kind = _kind_of(model)
        single_layer(model)
        if isinstance(mode, Unrolled):
            self.evals, self.method = mode.num_layers, type(mode).__name__
        else:
            self.evals, self.method = mode.solver.max_evals, type(mode.solver).__name__
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.in_channels: int = self.model.backbone.in_channels
        layer = self.layer
        fold_parametrizations(layer.cell)
        layer.mode = mode
        layer.compiler = None
        if isinstance(layer.initial_guess, PreviousGuess):
            layer.initial_guess = ZeroGuess()
        aligns = any(
            getattr(part, 'align_corners', False) is True
            for part in self.model.modules()
        )
        self.dynamic = ('batch',) if aligns else ('batch', 'size')
        preprocessor: Any = model.data_preprocessor
        # The toolboxes have a name of their own for it each.
        self.reverses_channels = bool(
            getattr(preprocessor, 'channel_conversion', False)
            or getattr(preprocessor, 'to_rgb', False)
        )
        self.mean: Optional[Tensor]
        self.std: Optional[Tensor]
        for name in ('mean', 'std'):
            values = getattr(preprocessor, name, None)
            self.register_buffer(name, None if values is None else values.clone())

    @property
    def layer(self) -> EquilibriumLayer:
        """The equilibrium layer of the copy."""
        return single_layer(self.model)

    def example(self, batch_size: int, height: int, width: int) -> Tensor:
        """Returns images of noise, always the same, ``(B, C, H, W)``.

        Their range is that of 8-bit images where the network normalises, else 0 to 1.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self.in_channels, height, width)
        images = torch.rand(shape, generator=generator)
        return images if self.mean is None else 255 * images

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            images (Tensor): Images as the model's data pipeline reads them, float32,
                ``(B, C, H, W)``.

        Returns:
            Tensor: ``(B, classes, H, W)`` of a segmentor, ``(B, classes)`` of a
            classifier.

        Raises:
            TypeError: If the head of a classifier returns something else.
        """
        if self.reverses_channels and images.shape[1] == 3:
            images = images.flip(1)
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        if self.kind == 'segmentor':
            metas = [dict(img_shape=images.shape[2:])]
            return self.model.encode_decode(images, metas)
        logits = self.model(images)
        if not isinstance(logits, Tensor):
            raise TypeError(
                'the head of model must return one tensor, '
                f'{type(self.model.head).__name__} returns {type(logits).__name__}'
            )
        return logits


def _kind_of(model: BaseModel) -> str:
    if hasattr(model, 'encode_decode'):
        return 'segmentor'
    if getattr(model, 'with_head', False):
        return 'classifier'
    raise TypeError(
        'model must be a segmentor of MMSegmentation or a classifier of MMPretrain, '
        f'got {type(model).__name__}'
    )
