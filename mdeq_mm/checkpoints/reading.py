"""Reading of the files of the official releases, which runs nothing in them."""

from __future__ import annotations

import hashlib
import mmap
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

# DataParallel, and the wrapper that holds segmentor and loss.
_WRAPPERS = re.compile(r'((module|model)\.)+')
_LOSS = 'loss.'
# Copies of the cell that the release of 2020 saves, too.
_SAME = 'deq.func.'
_COPIES = ('fullstage_copy.', _SAME, 'deq.func_copy.')
_SHOWN = 5


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What :func:`read_official_checkpoint` found in a file.

    Attributes:
        state_dict (dict[str, Tensor]): The network, with the keys of the release of
            2021 and without prefixes; floating tensors are in float32.
        sha256 (str): Digest of the file.
        release (str): ``'2020'`` if the copies of the cell were in the file that only
            this release saves, else ``'2021'``.
        dropped (dict[str, int]): Number of keys that are no part of the network, per
            prefix.
    """

    state_dict: dict[str, Tensor]
    sha256: str
    release: str
    dropped: dict[str, int]


def read_official_checkpoint(path: Union[str, Path]) -> OfficialCheckpoint:
    """Reads an official checkpoint in any form that was published.

    The file holds a state dict or a training checkpoint, in one of the two formats of
    ``torch.save``. The model is a classifier, or the wrapper of segmentor and loss,
    with or without DataParallel. Both releases, of 2020 and 2021, are read.

    Args:
        path (str or Path): The file.

    Returns:
        OfficialCheckpoint: The state dict of the network and what is known of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, would run code, or holds no state dict.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a directory, not a checkpoint file')
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    content = _load(path)
    if isinstance(content, Mapping) and isinstance(content.get('state_dict'), Mapping):
        content = content['state_dict']
    state_dict, dropped = _unwrap(_check(path, content), path)
    return OfficialCheckpoint(
        state_dict={
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in state_dict.items()
        },
        sha256=digest.hexdigest(),
        release='2020' if any(prefix in dropped for prefix in _COPIES) else '2021',
        dropped=dropped,
    )


def _load(path: Path) -> Any:
    """Loads a file with ``weights_only=True``."""
    # Before 2.6 torch runs the code in these two kinds of archives whatever
    # weights_only says. The name of a record stands in an archive uncompressed.
    if tarfile.is_tarfile(path) or _contains(path, b'constants.pkl'):
        raise ValueError(
            f'{path} is refused and nothing in it was run: it is a tar or a '
            'TorchScript archive, not what torch.save writes'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # any, because the file can be anything
        refused = re.search(r'(?:GLOBAL|class) ([\w.]+\.\w+)', str(error))
        if refused:
            raise ValueError(
                f'{path} is refused and nothing in it was run: besides tensors, '
                f'numbers, strings and containers of them it asks for {refused[1]}'
            ) from error
        raise ValueError(
            f'{path} is truncated, or is not what torch.save writes; '
            'nothing in it was run'
        ) from error


def _contains(path: Path, text: bytes) -> bool:
    if path.stat().st_size == 0:  # mmap refuses an empty file
        return False
    with path.open('rb') as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with content:
        return content.find(text) >= 0


def _check(path: Path, content: Any) -> Mapping[str, Tensor]:
    """Makes sure that a content is a state dict of a foreign network."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f'{path} holds no state dict: expected a dict of tensors, or one with the '
            f'key "state_dict", got {type(content).__name__}'
        )
    others = [str(key) for key, value in content.items() if not _is_entry(key, value)]
    if others:
        raise ValueError(
            f'{path} holds no state dict: no tensors are {_shorten(others)}'
        )
    own = [key for key in content if key.startswith('backbone.')]
    if own:
        raise ValueError(
            f'{path} has the names of the toolboxes already, nothing is to be '
            f'converted: {_shorten(own)}'
        )
    return content


def _is_entry(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _unwrap(
    content: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Cuts prefixes off, and drops what is no part of the network."""
    plain: dict[str, Tensor] = {}
    for key, tensor in content.items():
        wrapper = _WRAPPERS.match(key)
        name = key[wrapper.end() :] if wrapper else key
        if name in plain:
            raise ValueError(f'{path} has more than one tensor for {name}')
        plain[name] = tensor
    contradicting = [
        name
        for name, tensor in plain.items()
        if name.startswith(_SAME)
        and not _same(tensor, plain.get(f'fullstage.{name[len(_SAME) :]}'))
    ]
    if contradicting:
        raise ValueError(
            f'{path} contradicts itself: not the same as the tensors of fullstage are '
            f'{_shorten(contradicting)}'
        )
    state_dict: dict[str, Tensor] = {}
    dropped: Counter[str] = Counter()
    for name, tensor in plain.items():
        prefix = next((p for p in (_LOSS, *_COPIES) if name.startswith(p)), None)
        if prefix is None:
            state_dict[name] = tensor
        else:
            dropped[prefix] += 1
    return state_dict, dict(dropped)


def _same(copy: Tensor, original: Optional[Tensor]) -> bool:
    return original is not None and torch.equal(copy, original)


def _shorten(names: list[str]) -> str:
    """Joins names for a message, the first few of many."""
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
