"""The models of ``model-index.yml`` by name."""

from __future__ import annotations

import difflib
import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.fileio import load

# Metafiles of the models that mmpretrain builds.
MMPRETRAIN_METAFILES = (
    'configs/classification/metafile.yml',
    'configs/selfsup/metafile.yml',
)


def list_models(pattern: str = '', trained: bool = False) -> list[str]:
    """Returns the names of the models, of every toolbox.

    Args:
        pattern (str): What the names begin with, with wildcards as in a shell, as
            ``mmpretrain.list_models`` takes it. Defaults to ``''``, all names.
        trained (bool): Whether to leave out models whose weights do not come with this
            package. Defaults to False.

    Examples:
        >>> list_models('mdeq-tiny*digits')
        ['mdeq-tiny_1xb64_digits']
    """
    models = _models()
    names = fnmatch.filter(models, f'{pattern}*')
    return sorted(name for name in names if models[name]['Weights'] or not trained)


def config_path(name: str) -> str:
    """Returns the config file of a model.

    MMSegmentation finds no models but its own by name. It takes the path instead:
    ``MMSegInferencer(config_path(name), weights=CHECKPOINT)``. :func:`model_files`
    returns the weights, too.

    Args:
        name (str): The name.

    Returns:
        str: The absolute path.

    Raises:
        ValueError: If there is no such model.
    """
    models = _models()
    if name not in models:
        near = difflib.get_close_matches(name, models) or list(models)
        raise ValueError(f'there is no model {name!r}; there is {", ".join(near)}')
    return str(_root() / models[name]['Config'])


def model_files(name: str) -> tuple[str, str]:
    """Returns config and trained weights of a model that comes with this package.

    Whatever takes a config and a checkpoint takes them, such as
    ``init_model(*model_files(name))`` and ``MMSegInferencer(*model_files(name))`` of
    MMSegmentation, and ``ImageClassificationInferencer(*model_files(name))`` of
    MMPretrain.

    Args:
        name (str): The name.

    Returns:
        tuple[str, str]: The absolute paths of both files.

    Raises:
        ValueError: If there is no such model, or if it has no weights.
    """
    config = config_path(name)
    trained = list_models(trained=True)
    if name not in trained:
        raise ValueError(
            f'no weights come with the model {name!r}; they come with '
            f'{", ".join(trained)}'
        )
    return config, str(_root() / _models()[name]['Weights'])


def register_models() -> None:
    """Lets mmpretrain find the classifiers of this project by name.

    ``mmpretrain.list_models``, ``get_model`` and the inferencers know them afterwards,
    with the weights that come with this package. This imports mmpretrain. A second call
    does nothing.

    Raises:
        ModuleNotFoundError: If mmpretrain is not installed.
    """
    hub = import_module('mmpretrain.apis').ModelHub
    for metafile in MMPRETRAIN_METAFILES:
        path = _root() / metafile
        models = load(path)['Models']
        if all(hub.has(model['Name']) for model in models):
            continue
        hub.register_model_index(path, config_prefix=_root())
        for model in models:
            if model['Weights']:
                # The hub has no public way to say where the weights are.
                entry = hub._models_dict[model['Name'].lower()]  # noqa: SLF001
                entry.weights = str(_root() / model['Weights'])


def _models() -> dict[str, dict[str, Any]]:
    """Returns the entries of the index by name."""
    imports = load(_root() / 'model-index.yml')['Import']
    entries = [model for name in imports for model in load(_root() / name)['Models']]
    return {model['Name']: model for model in entries}


def _root() -> Path:
    """Returns the folder of configs, weights and index.

    An installation has both under ``.mim``, a checkout beside the package.
    """
    package = Path(__file__).resolve().parent
    installed = package / '.mim'
    return installed if (installed / 'model-index.yml').is_file() else package.parent
