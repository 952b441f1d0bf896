"""Whether the weights of a checkpoint are those of a model."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.utils import is_seq_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .messages import shorten

# Heads that toolboxes use for a loss alone: without them a model predicts the same.
TRAINING_PARTS = ('auxiliary_head.',)


@dataclass(frozen=True)
class Mismatch:
    """What of a state dict does not fit a model.

    Attributes:
        missing (tuple[str]): Keys of the model that the state dict does not have.
        unexpected (tuple[str]): Keys of the state dict that the model does not have.
        misshapen (tuple[str]): What torch says of each tensor that does not fit.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lists = dict(
            missing=self.missing, unexpected=self.unexpected, misshapen=self.misshapen
        )
        # What torch says of two shapes is long.
        lengths = dict(missing=100, unexpected=100, misshapen=300)
        return '\n'.join(
            f'{len(keys)} {kind}: {shorten(keys, shown=8, length=lengths[kind])}'
            for kind, keys in lists.items()
            if keys
        )


def state_dict_of(checkpoint: Any, name: str) -> Mapping[str, Any]:
    """Returns the state dict in a checkpoint, or the checkpoint if it is one.

    Args:
        checkpoint (Any): What a file holds.
        name (str): Name of the file, for the error.

    Raises:
        ValueError: If there is no state dict.
    """
    state_dict = checkpoint
    if isinstance(checkpoint, Mapping) and 'state_dict' in checkpoint:
        state_dict = checkpoint['state_dict']
    if not isinstance(state_dict, Mapping) or not is_seq_of(list(state_dict), str):
        raise ValueError(
            f'{name} holds no state dict: expected a dict of tensors by name, or one '
            f'with the key "state_dict", got {type(state_dict).__name__}'
        )
    return state_dict


def load_weights(
    model: nn.Module,
    checkpoint: Any,
    name: str,
    *,
    but: tuple[str, ...] = TRAINING_PARTS,
    allow_partial: bool = False,
) -> None:
    """Loads the weights of a checkpoint into a model that has the same ones.

    A prefix ``module.`` of a wrapper is dropped. Counters of batches, which checkpoints
    of an old torch do not have, may be missing.

    Args:
        model (nn.Module): The model. Of a wrapper the model inside is taken.
        checkpoint (Any): What a file holds: a state dict, or a dict with the key
            ``'state_dict'``.
        name (str): Name of the file, for the error.
        but (tuple[str]): Beginnings of keys to which it does not matter whether they
            are missing or unexpected. Defaults to those of parts for training alone.
        allow_partial (bool): Whether to load what fits and warn of the rest. Defaults
            to False.

    Raises:
        ValueError: If there is no state dict, or if it does not fit the model. Then the
            weights of the model are those of the file in part.
    """
    mismatch = _load(model, state_dict_of(checkpoint, name), but)
    if not mismatch:
        return
    message = f'the weights of {name} do not fit {type(_unwrapped(model)).__name__}'
    if not allow_partial:
        raise ValueError(f'{message}:\n{mismatch}')
    print_log(f'{message}:\n{mismatch}', logger='current', level=logging.WARNING)


def _load(
    model: nn.Module, state_dict: Mapping[str, Any], but: tuple[str, ...]
) -> Mismatch:
    """Loads what fits, and returns what does not."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def record(module: nn.Module, keys: Any) -> None:
        nonlocal missing, unexpected
        missing = tuple(
            key
            for key in keys.missing_keys
            if not key.startswith(but) and not key.endswith('num_batches_tracked')
        )
        unexpected = tuple(k for k in keys.unexpected_keys if not k.startswith(but))

    plain: Any = OrderedDict(
        (key.removeprefix('module.'), value) for key, value in state_dict.items()
    )
    # Among its attributes are the versions of the modules.
    vars(plain).update(getattr(state_dict, '__dict__', {}))
    model = _unwrapped(model)
    handle = model.register_load_state_dict_post_hook(record)
    try:
        model.load_state_dict(plain, strict=False)
    except RuntimeError as error:  # after a headline, a line for each that does not fit
        misshapen = tuple(line.strip() for line in str(error).splitlines()[1:])
    finally:
        handle.remove()
    return Mismatch(missing, unexpected, misshapen)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model in the wrappers that leave its parameters as they are."""
    while isinstance(model, (DistributedDataParallel, BaseTTAModel)):
        model = model.module
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether a wrapper has taken parameters apart, so that keys say nothing."""
    return any(is_model_wrapper(module) for module in _unwrapped(model).modules())
