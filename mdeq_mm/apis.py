"""The one way to find, load or build configs and models, and their equilibrium layers.

No toolbox is imported with this module, but when a config of it is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from os import PathLike
from typing import Any, Optional, Union

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from .checkpoints import load_checkpoint, load_weights
from .deq import Equilibrium, EquilibriumLayer, equilibrium_layers
from .model_index import config_path, list_models, model_files, register_models

__all__ = [
    'build_model',
    'build_runner',
    'build_test_dataset',
    'build_test_loader',
    'config_path',
    'equilibrium_layers',
    'find_layer',
    'image_shape',
    'list_models',
    'load_config',
    'load_model',
    'model_files',
    'register_models',
    'single_layer',
    'solving_mode',
    'toolbox',
    'toolbox_of',
]

DEFAULT_IMAGE_SHAPE = (224, 224)


def load_config(
    path: Union[str, PathLike[str]], cfg_options: Optional[dict[str, Any]] = None
) -> Config:
    """Loads the config of a model of any installed toolbox.

    Args:
        path (str or Path): The file.
        cfg_options (dict, optional): Settings to override, by key; dots join nested
            keys. Defaults to None.

    Returns:
        Config: The config.

    Raises:
        ValueError: As :func:`toolbox_of`.
    """
    cfg = Config.fromfile(path)
    if cfg_options is not None:
        cfg.merge_from_dict(cfg_options)
    toolbox_of(cfg)
    return cfg


@contextmanager
def toolbox(cfg: Config) -> Iterator[None]:
    """Builds with the toolbox of a config while the context lasts.

    The models of the toolbox are registered, and its name is the default scope of the
    registries. With the end of the context the default scope is the one before.

    Args:
        cfg (Config): The config.

    Raises:
        ValueError: As :func:`toolbox_of`.
    """
    scope = toolbox_of(cfg)
    try:
        import_module(f'{scope}.models')
    except ModuleNotFoundError as error:
        # A package may keep its models elsewhere and say so in its registry.
        if error.name != f'{scope}.models':
            raise
    with DefaultScope.overwrite_default_scope(scope):
        yield


def toolbox_of(cfg: Config) -> str:
    """Returns the name of the toolbox that a config is for.

    That is its ``default_scope``. Where it has none, as the toolboxes' own configs in
    the style of Python modules, it is the package of the class of the model.

    Args:
        cfg (Config): The config.

    Raises:
        ValueError: If that names no installed package.
    """
    scope = cfg.get('default_scope')
    if scope is None and cfg.get('model') is not None:
        kind = cfg.model.get('type')
        if isinstance(kind, type):
            return kind.__module__.partition('.')[0]
    if isinstance(scope, str) and scope.isidentifier() and _is_installed(scope):
        return scope
    toolboxes = ', '.join(name for name in MODULE2PACKAGE if _is_installed(name))
    raise ValueError(
        f'default_scope of {_name_of(cfg)} must be the name of an installed toolbox, '
        f'such as {toolboxes or "mmseg (none is installed)"}, or None if the type of '
        f'the model is a class, got {scope!r}'
    )


def build_model(cfg: Config) -> BaseModel:
    """Builds the model of a config in evaluation mode, without SyncBN.

    Its weights are those that its parts draw when they are made. For the weights that
    ``init_cfg`` asks for call ``model.init_weights()``.

    Args:
        cfg (Config): The config. It is not changed.

    Returns:
        BaseModel: The model.
    """
    settings = deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        settings.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    with toolbox(cfg):
        model = revert_sync_batchnorm(MODELS.build(settings))
    # Not `return model.eval()`: some modules of the toolboxes return None there.
    model.eval()
    return model


def load_model(
    cfg: Config,
    checkpoint: Union[str, PathLike[str]],
    device: Optional[str] = None,
    allow_partial: bool = False,
) -> BaseModel:
    """Builds the model of a config with the weights of a checkpoint.

    A checkpoint of the unrolled phase of a training brings the unrolled mode with it.
    Nothing in the file is run.

    Args:
        cfg (Config): The config. It is not changed.
        checkpoint (str or Path): The checkpoint: a file, a URL, or a name of a model
            zoo that mmengine knows.
        device (str, optional): Where to put the model. Defaults to None, the
            accelerator if there is one, else the CPU.
        allow_partial (bool): Whether a checkpoint may lack weights of the model, or
            have others. Defaults to False.

    Returns:
        BaseModel: The model, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be loaded, or its weights are not those of the
            model. It names those that are missing, unexpected or misshapen.
    """
    content = load_checkpoint(checkpoint)
    model = build_model(cfg)
    load_weights(model, content, str(checkpoint), allow_partial=allow_partial)
    return model.to(get_device() if device is None else device)


def build_runner(cfg: Config) -> Runner:
    """Builds the runner that a config asks for, mmengine's own or a registered one."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def build_test_loader(cfg: Config) -> DataLoader:
    """Builds the data loader that a config tests with.

    Raises:
        ValueError: If the config has none, or one for each of several tasks.
    """
    loader = _test_loader_of(cfg)
    with toolbox(cfg):
        return Runner.build_dataloader(loader)


def build_test_dataset(cfg: Config) -> BaseDataset:
    """Builds the data set that a config tests with, for its pipeline and its classes.

    It reads no file: the data set has no samples until its ``full_init`` is called.

    Raises:
        ValueError: If the config has none, one for each of several tasks, or one
            without a pipeline, as those that join others.
    """
    settings = _test_loader_of(cfg).dataset
    if 'pipeline' not in settings:
        raise ValueError(
            f'the data set in test_dataloader of {_name_of(cfg)} must have a pipeline, '
            f'{settings.type} has none'
        )
    with toolbox(cfg):
        return DATASETS.build(dict(deepcopy(settings), lazy_init=True))


def image_shape(cfg: Config) -> tuple[int, int]:
    """Returns the size ``(H, W)`` that the data preprocessor of a config pads to.

    Where it pads to none, that is 224 x 224.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    height, width = (preprocessor or {}).get('size') or DEFAULT_IMAGE_SHAPE
    return height, width


def find_layer(model: nn.Module) -> Optional[tuple[str, EquilibriumLayer]]:
    """Returns name and module of the equilibrium layer, None if there is none.

    Raises:
        ValueError: If there are several.
    """
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, EquilibriumLayer)
    ]
    if len(layers) > 1:
        raise ValueError(
            'a model must have at most one equilibrium layer, '
            f'got {", ".join(name for name, _ in layers)}'
        )
    return layers[0] if layers else None


def single_layer(model: nn.Module) -> EquilibriumLayer:
    """Returns the one equilibrium layer of a model.

    Raises:
        ValueError: If there is none, or if there are several.
    """
    found = find_layer(model)
    if found is None:
        raise ValueError(
            f'a model with an equilibrium layer is needed, {type(model).__name__} '
            'has none'
        )
    return found[1]


def solving_mode(layer: EquilibriumLayer) -> Equilibrium:
    """Returns how a layer solves: by its mode or, if that is unrolled, as configured.

    Tools that look at solves use it, because a checkpoint of the unrolled phase brings
    the unrolled mode with it.
    """
    mode = layer.mode
    return mode if isinstance(mode, Equilibrium) else layer.configured


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _name_of(cfg: Config) -> str:
    return cfg.filename or 'the config'


def _test_loader_of(cfg: Config) -> ConfigDict:
    if cfg.get('test_dataloader') is None:
        raise ValueError(f'{_name_of(cfg)} must have a test_dataloader, it has none')
    if 'dataset' not in cfg.test_dataloader:
        raise ValueError(
            f'{_name_of(cfg)} must have the test_dataloader of one task, got those of '
            f'{", ".join(cfg.test_dataloader)}; tools/misc/split_multitask.py cuts one '
            'task out'
        )
    return cfg.test_dataloader
