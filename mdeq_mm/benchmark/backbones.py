"""What a backbone costs in inference and in a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..apis import (
    build_model,
    build_test_loader,
    find_layer,
    image_shape,
    load_config,
    load_model,
    single_layer,
)
from ..deq import Unrolled
from .counting import Work, count_saved_bytes, count_work
from .images import name_samples
from .timing import interleave

STOCK_BACKBONES = {
    'hrnet-w18': dict(type='HRNet', arch='w18'),
    'resnet50': dict(type='ResNet', depth=50),
    'resnet101': dict(type='ResNet', depth=101),
}


class Case(Enum):
    """What a backbone does."""

    EVALUATION = 'one bare evaluation'
    INFERENCE = 'inference'
    APPLICATION = 'training step of one application'
    TRAINING = 'training step'


@dataclass
class Subject:
    """A backbone to measure.

    Attributes:
        name (str): Name of a stock backbone, or file of a config.
        cfg_options (dict, optional): Settings of the config to override.
    """

    name: str
    cfg_options: Optional[dict[str, Any]] = None

    @property
    def label(self) -> str:
        """The name of the backbone in tables."""
        return self.name if self.name in STOCK_BACKBONES else Path(self.name).stem

    def build(self) -> nn.Module:
        """Builds the backbone, initialised as for a training from scratch."""
        if self.name in STOCK_BACKBONES:
            cfg = dict(default_scope='mmpretrain', model=STOCK_BACKBONES[self.name])
            backbone = build_model(Config(cfg))
        else:
            cfg = load_config(self.name, self.cfg_options)
            # Weights of a file, which may not be there, change no cost.
            cfg.model.backbone.pop('init_cfg', None)
            backbone = build_model(cfg).backbone
        _init_weights(backbone)
        return backbone

    def cases(self) -> tuple[Case, ...]:
        """The cases whose memory is measured."""
        if self.name in STOCK_BACKBONES:
            return (Case.INFERENCE, Case.TRAINING)
        return tuple(Case)


def load_with_images(
    config: str,
    cfg_options: Optional[dict[str, Any]] = None,
    checkpoint: Optional[str] = None,
    shape: Optional[Sequence[int]] = None,
    batch_size: int = 2,
) -> tuple[nn.Module, Tensor]:
    """Returns a backbone in evaluation mode, and images for it.

    Args:
        config (str): File of the config.
        cfg_options (dict, optional): Settings of the config to override.
            Defaults to None.
        checkpoint (str, optional): File with the weights. Defaults to None, those of a
            fresh initialisation.
        shape (Sequence[int], optional): Size ``(H, W)`` of random images. Defaults to
            None, with a checkpoint images of the test data set, else random ones of
            the size of the data preprocessor.
        batch_size (int): Number of images. Defaults to 2.

    Returns:
        tuple[nn.Module, Tensor]: The backbone and the images, ``(B, C, H, W)``, both on
        the accelerator if there is one.
    """
    cfg = load_config(config, cfg_options)
    if checkpoint is None:
        backbone = Subject(config, cfg_options).build().to(get_device())
        backbone.eval()
    else:
        model = load_model(cfg, checkpoint)
        if shape is None:
            cfg.test_dataloader.batch_size = batch_size
            batch = next(iter(name_samples(build_test_loader(cfg))))
            return model.backbone, model.data_preprocessor(batch)['inputs']
        backbone = model.backbone
    channels = getattr(backbone, 'in_channels', 3)
    size = (batch_size, channels, *(shape or image_shape(cfg)))
    return backbone, torch.randn(*size, device=get_device())


def run_case(backbone: nn.Module, images: Tensor, case: Case) -> None:
    """Runs a backbone once.

    A training step is forward and backward, from gradients of random direction, without
    an optimizer. The two cases of a single application unroll the cell once.

    Args:
        backbone (nn.Module): The backbone.
        images (Tensor): Images, ``(B, C, H, W)``.
        case (Case): What to do.
    """
    override: AbstractContextManager = nullcontext()
    if case in (Case.EVALUATION, Case.APPLICATION):
        override = single_layer(backbone).using(mode=Unrolled(1))
    with override:
        if case in (Case.EVALUATION, Case.INFERENCE):
            backbone.eval()
            with torch.no_grad():
                backbone(images)
        else:
            backbone.train()
            backbone.zero_grad()
            _backward(backbone(images))


def measure_models(
    subjects: Sequence[Subject], images: Tensor, repeats: int
) -> dict[str, dict[str, Any]]:
    """Measures inference and training step of several backbones, in turn.

    Args:
        subjects (Sequence[Subject]): The backbones.
        images (Tensor): Images, ``(B, C, H, W)``.
        repeats (int): Number of rounds.

    Returns:
        dict: For each backbone ``parameters``, ``saved_bytes`` for backward, and, for
        ``inference`` and ``training``, the median ``seconds``, those of all
        ``rounds``, and, of an MDEQ, ``evaluations`` and ``products``.
    """
    measured: dict[str, dict[str, Any]] = {}
    cases: dict[tuple[str, str], Callable[[], object]] = {}
    for subject in subjects:
        backbone = subject.build().to(images.device)
        infer = partial(run_case, backbone, images, Case.INFERENCE)
        train = partial(run_case, backbone, images, Case.TRAINING)
        with _counting(backbone) as inference:
            infer()
        with _counting(backbone) as training:
            backbone.train()
            with count_saved_bytes(backbone) as saved:
                outputs = backbone(images)
            _backward(outputs)
            del outputs
        measured[subject.label] = dict(
            parameters=sum(p.numel() for p in backbone.parameters()),
            saved_bytes=saved[0],
            inference={} if inference is None else vars(inference),
            training={} if training is None else vars(training),
        )
        cases[subject.label, 'inference'] = infer
        cases[subject.label, 'training'] = train
    for (label, kind), rounds in interleave(cases, repeats, images.device).items():
        measured[label][kind].update(seconds=median(rounds), rounds=rounds)
    return measured


def _counting(backbone: nn.Module) -> AbstractContextManager[Optional[Work]]:
    found = find_layer(backbone)
    return nullcontext() if found is None else count_work(found[1])


def _backward(outputs: Sequence[Tensor]) -> None:
    # A constant gradient would be lost in the norm an MDEQ ends with.
    torch.autograd.backward(outputs, [torch.randn_like(out) for out in outputs])


def _init_weights(backbone: BaseModule) -> None:
    """Initialises a backbone without a report on every parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        backbone.init_weights()
    finally:
        logger.setLevel(level)
