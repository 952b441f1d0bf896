"""Loading of checkpoints, which runs nothing in a file."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

from .archive import check_archive
from .restricted import read_archive

_WEIGHTS_ONLY = digit_version(torch.__version__) >= digit_version('2.6')


def load_checkpoint(
    name: Union[str, PathLike[str]],
    map_location: Union[str, torch.device, None] = 'cpu',
) -> Any:
    """Loads a checkpoint by any name that mmengine knows.

    A file and a URL are loaded as :func:`load_from_local` and :func:`load_from_http`
    do. Names of a model zoo, such as ``torchvision://resnet18``, are left to mmengine.

    Args:
        name (str or Path): File, URL, or name of a model zoo.
        map_location (str or torch.device, optional): Where to put tensors. Defaults to
            ``'cpu'``.
    """
    name = str(name)
    if name.startswith(('http://', 'https://')):
        return load_from_http(name, map_location)
    if '://' in name:
        return CheckpointLoader.load_checkpoint(name, map_location)
    return load_from_local(name, map_location)


@contextmanager
def safe_loading() -> Iterator[None]:
    """Lets mmengine load files and URLs with the functions of this module.

    That holds while the context lasts, for whatever loads through mmengine: the runner,
    ``init_cfg`` of any part of a model, ``load_from``. It holds for the process, so it
    is for tools.
    """
    http = ('http://', 'https://')
    # mmengine has no public way to ask for what is registered.
    before = dict(CheckpointLoader._schemes)  # noqa: SLF001
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(http, load_from_http, force=True)
    try:
        yield
    finally:
        CheckpointLoader._schemes = before  # noqa: SLF001


def load_from_http(url: str, map_location: Any = None) -> Any:
    """Downloads a checkpoint, unless it is in torch's cache, and loads the file.

    Args:
        url (str): The address.
        map_location (str or torch.device, optional): Where to put tensors. Defaults to
            None, the CPU.

    Raises:
        ValueError: As :func:`load_from_local`.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)
    if is_main_process() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    barrier()
    return load_from_local(path, map_location)


def load_from_local(path: Union[str, PathLike[str]], map_location: Any = None) -> Any:
    """Loads a file that ``torch.save`` has written, and runs nothing in it.

    Beside tensors, numbers, strings and containers of them the file may hold what
    mmengine puts into its training checkpoints. :func:`check_archive` looks at the file
    before anything in it is loaded.

    Args:
        path (str or Path): The file.
        map_location (str or torch.device, optional): Where to put tensors. Defaults to
            None, the CPU.

    Returns:
        Any: What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If :func:`check_archive` refuses it, or if it would run code.
    """
    path = Path(path).expanduser()
    check_archive(path)
    try:
        return _load(path, 'cpu' if map_location is None else map_location)
    except MemoryError:
        raise
    except Exception as error:  # any, because the file can be anything
        refused = _refused_name(str(error))
        if refused is None:
            raise ValueError(
                f'{path} is truncated, or is not what torch.save writes; nothing in it '
                'was run'
            ) from error
        raise ValueError(
            f'{path} is refused and nothing in it was run: it asks for {refused}, '
            'which is no part of a checkpoint'
        ) from error


def _load(path: Path, map_location: Any) -> Any:
    if not _WEIGHTS_ONLY and zipfile.is_zipfile(path):
        return read_archive(path, map_location)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.load(path, map_location=map_location, weights_only=True)


def _refused_name(message: str) -> Optional[str]:
    """Returns the name that torch's or this project's reader does not know."""
    # Of a builtin torch leaves out the module.
    found = re.search(r'GLOBAL ([\w.]+)|(?:class|function) ([\w.]+\.\w+)', message)
    return (found[1] or found[2]) if found else None
