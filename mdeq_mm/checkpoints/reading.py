"""Reading of the files of the official releases, which runs nothing in them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .loading import load_from_local
from .matching import state_dict_of
from .messages import quote, shorten

# DataParallel, and the wrapper that holds segmentor and loss.
_WRAPPERS = re.compile(r'((module|model)\.)+')
_LOSS = 'loss.'
# Copies of the cell that the release of 2020 saves, too.
_SAME = 'deq.func.'
_COPIES = ('fullstage_copy.', _SAME, 'deq.func_copy.')
# No official model has a tenth as many.
_MAX_TENSORS = 10_000
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


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
    with or without DataParallel. Both releases, of 2020 and 2021, are read. The file is
    loaded by :func:`load_from_local`.

    Args:
        path (str or Path): The file.

    Returns:
        OfficialCheckpoint: The state dict of the network and what is known of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, would run code, asks for more memory
            than it holds, has no state dict, or has numbers that are not finite in
            float32.
    """
    path = Path(path)
    content = load_from_local(path)
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    content = state_dict_of(content, str(path))
    _check(path, content)
    state_dict, dropped = _unwrap(content, path)
    return OfficialCheckpoint(
        state_dict=_in_float32(path, state_dict),
        sha256=digest.hexdigest(),
        release='2020' if any(prefix in dropped for prefix in _COPIES) else '2021',
        dropped=dropped,
    )


def _check(path: Path, content: Mapping[str, Any]) -> None:
    """Makes sure that a state dict is one of a foreign network."""
    if not content:
        raise ValueError(f'{path} holds an empty state dict')
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f'{path} holds no state dict: no tensors are {shorten(others)}'
        )
    if len(content) > _MAX_TENSORS:
        raise ValueError(
            f'{path} holds no official model: it has {len(content):,} tensors, at most '
            f'{_MAX_TENSORS:,} are allowed'
        )
    odd = [f'{key} ({t.dtype})' for key, t in content.items() if not _is_plain(t)]
    if odd:
        raise ValueError(
            f'{path} holds tensors that no official model has; only dense ones of '
            f'floating point or int64 are allowed: {shorten(odd)}'
        )
    own = [key for key in content if key.startswith('backbone.')]
    if own:
        raise ValueError(
            f'{path} has the names of the toolboxes already, nothing is to be '
            f'converted: {shorten(own)}'
        )


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == 'cpu'
        and tensor.dtype in _DTYPES
        and _is_filled(tensor)
    )


def _is_filled(tensor: Tensor) -> bool:
    """Tells whether a tensor is dense: each number in a place of its own, no gaps."""
    pairs = zip(tensor.stride(), tensor.shape)
    expected = 1
    for stride, size in sorted(pair for pair in pairs if pair[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _in_float32(path: Path, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts floating tensors, if their memory is their own and they are finite."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in state_dict.values()
    }
    needed = sum(t.numel() * t.element_size() for t in state_dict.values())
    if needed > sum(storages.values()):
        raise ValueError(
            f'{path} holds {sum(storages.values()):,} bytes for the {needed:,} of its '
            'tensors: several share memory, as those of no official model do'
        )
    converted = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state_dict.items()
    }
    broken = [key for key, tensor in converted.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f'{path} holds numbers that are not finite in float32, in {shorten(broken)}'
        )
    return converted


def _unwrap(
    content: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Cuts prefixes off, and drops what is no part of the network."""
    plain: dict[str, Tensor] = {}
    for key, tensor in content.items():
        wrapper = _WRAPPERS.match(key)
        name = key[wrapper.end() :] if wrapper else key
        if name in plain:
            raise ValueError(f'{path} has more than one tensor for {quote(name)}')
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
            f'{shorten(contradicting)}'
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
