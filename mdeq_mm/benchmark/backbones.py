"""What a backbone costs in inference and in a training step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Optional

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..deq import UnrolledGradient
from ..utils.launch import build_model, find_layer, load_config
from ..utils.measure import Work, count_saved_bytes, count_work, interleave

STOCK_BACKBONES = {
    'hrnet-w18': dict(type='mmpretrain.HRNet', arch='w18'),
    'resnet50': dict(type='mmpretrain.ResNet', depth=50),
    'resnet101': dict(type='mmpretrain.ResNet', depth=101),
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
    cfg_options: Optional[dict] = None

    @property
    def label(self) -> str:
        """How tables call it."""
        return self.name if self.name in STOCK_BACKBONES else Path(self.name).stem

    def build(self) -> nn.Module:
        """Builds the backbone, initialised as for a training from scratch."""
        if self.name in STOCK_BACKBONES:
            import_module('mmpretrain.models')
            backbone = MODELS.build(dict(STOCK_BACKBONES[self.name]))
        else:
            cfg = load_config(
                argparse.Namespace(config=self.name, cfg_options=self.cfg_options)
            )
            # Weights of a file, which may not be there, change no cost.
            cfg.model.backbone.pop('init_cfg', None)
            backbone = build_model(cfg).backbone
        _init_weights(backbone)
        return backbone

    def cases(self) -> tuple[Case, ...]:
        """What memory is measured of."""
        if self.name in STOCK_BACKBONES:
            return (Case.INFERENCE, Case.TRAINING)
        return tuple(Case)


def _init_weights(backbone: nn.Module) -> None:
    """Initialises a backbone without a report on every parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    backbone.init_weights()
    logger.setLevel(level)


def run_case(backbone: nn.Module, images: Tensor, case: Case) -> None:
    """Runs a backbone once.

    A training step is forward and backward, from gradients of random direction, without
    an optimizer. The two cases of a single application set the layer up for it, for
    good.

    Args:
        backbone (nn.Module): The backbone.
        images (Tensor): Images, ``(B, C, H, W)``.
        case (Case): What to do.
    """
    if case is Case.EVALUATION:
        layer = find_layer(backbone)[1]
        layer.shallow, layer.shallow_gradient = True, UnrolledGradient(1)
    elif case is Case.APPLICATION:
        find_layer(backbone)[1].gradient = UnrolledGradient(1)
    if case in (Case.EVALUATION, Case.INFERENCE):
        backbone.eval()
        with torch.no_grad():
            backbone(images)
    else:
        backbone.train()
        backbone.zero_grad()
        _backward(backbone(images))


def _backward(outputs: Sequence[Tensor]) -> None:
    # A constant gradient would be lost in the norm an MDEQ ends with.
    torch.autograd.backward(outputs, [torch.randn_like(out) for out in outputs])


def measure_models(
    subjects: Sequence[Subject], images: Tensor, repeats: int
) -> dict[str, dict[str, Any]]:
    """Measures inference and training step of several backbones, in turn.

    Args:
        subjects (Sequence[Subject]): The backbones.
        images (Tensor): Images, ``(B, C, H, W)``.
        repeats (int): Rounds.

    Returns:
        dict: For each backbone ``parameters``, ``saved_bytes`` for backward, and, for
        ``inference`` and ``training``, the median ``seconds``, those of all
        ``rounds``, and, of an MDEQ, ``evaluations`` and ``products``.
    """
    measured, cases = {}, {}
    for subject in subjects:
        backbone = subject.build().to(images.device)
        found = find_layer(backbone)
        infer = partial(run_case, backbone, images, Case.INFERENCE)
        with count_work(found[1]) if found else nullcontext() as inference:
            infer()
        backbone.train()
        with count_work(found[1]) if found else nullcontext() as training:
            with count_saved_bytes(backbone) as saved:
                outputs = backbone(images)
            _backward(outputs)
            del outputs
        measured[subject.label] = dict(
            parameters=sum(p.numel() for p in backbone.parameters()),
            saved_bytes=saved[0],
            inference=_counts(inference),
            training=_counts(training),
        )
        cases[subject.label, 'inference'] = infer
        cases[subject.label, 'training'] = partial(
            run_case, backbone, images, Case.TRAINING
        )
    for (label, kind), rounds in interleave(cases, repeats, images.device).items():
        measured[label][kind].update(seconds=median(rounds), rounds=rounds)
    return measured


def _counts(work: Optional[Work]) -> dict[str, int]:
    return {} if work is None else vars(work)
