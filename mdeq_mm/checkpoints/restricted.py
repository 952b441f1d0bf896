"""The safe reader for a torch that has none which takes training checkpoints.

Before 2.6 ``torch.load(weights_only=True)`` refuses the log histories in a checkpoint
of mmengine, and reads beyond the end of a tensor that the file calls larger than it is.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from ..compat import stand_ins
from .outline_values import STORAGE_DTYPES


def read_archive(path: Path, device: Union[str, torch.device] = 'cpu') -> Any:
    """Reads a file of ``torch.save``, of which nothing is run.

    Only names of a fixed list are looked up, and each stands for a class or function
    that does no more than build tensors, plain numpy arrays and log histories.

    Args:
        path (Path): The file, a zip archive.
        device (str or torch.device): Where to put the tensors. Defaults to ``'cpu'``.

    Returns:
        Any: What was saved.

    Raises:
        UnpicklingError: If the file asks for anything else, or does not hold what it
            says.
        Exception: Any other, if the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise pickle.UnpicklingError('its records are compressed')
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise pickle.UnpicklingError('its records are larger than the file')
        (root,) = (
            name.removesuffix('data.pkl')
            for name in archive.namelist()
            if name.count('/') == 1 and name.endswith('/data.pkl')
        )
        return _Unpickler(archive, root, device).load()


class _Sealed:
    """A function that a file may call, and has nothing that a file could change."""

    __slots__ = ('_call',)

    _call: Any

    def __init__(self, call: Any) -> None:
        object.__setattr__(self, '_call', call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f'it changes {name!r} of a function')


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, archive: zipfile.ZipFile, root: str, device: Union[str, torch.device]
    ) -> None:
        super().__init__(io.BytesIO(archive.read(f'{root}data.pkl')), encoding='utf-8')
        self._archive = archive
        self._root = root
        self._device = device
        self._storages: dict[str, Tensor] = {}
        self._allowed = {
            **_PLAIN,
            'torch._utils._rebuild_tensor_v2': self._tensor,
            'torch._utils._rebuild_parameter': _parameter,
        }

    def find_class(self, module: str, name: str) -> Any:
        # The pickles that torch writes have the names of Python 2.
        module = {'__builtin__': 'builtins'}.get(module, module)
        if module in ('torch', 'torch.storage') and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        try:
            found = self._allowed[f'{module}.{name}']
        except KeyError:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}') from None
        return found if isinstance(found, (type, torch.dtype)) else _Sealed(found)

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        """Reads the storage that a file refers to; it must be as large as it says."""
        kind, dtype, key, _, numel = pid
        if kind != 'storage' or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError('it refers to what is no storage')
        data = self._archive.read(f'{self._root}data/{key}')
        if len(data) != numel * dtype.itemsize:
            raise pickle.UnpicklingError(
                f'a storage of {numel} numbers in {dtype} has {len(data)} bytes'
            )
        if key not in self._storages:
            # torch wants memory that it may write to, and none of size 0.
            self._storages[key] = torch.frombuffer(
                bytearray(data) or bytearray(1), dtype=torch.uint8
            )[: len(data)]
        return key, dtype

    def _tensor(
        self,
        storage: tuple[str, torch.dtype],
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        *_: Any,
    ) -> Tensor:
        key, dtype = storage
        tensor = torch.empty(0, dtype=dtype).set_(
            self._storages[key].untyped_storage(), offset, size, stride
        )
        return tensor.to(self._device).requires_grad_(requires_grad)


def _parameter(data: Tensor, requires_grad: bool, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


def _encode(text: str, encoding: str) -> bytes:
    # How protocol 2 writes bytes.
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it has bytes in {encoding!r}')
    return text.encode('latin1')


_PLAIN: dict[str, Any] = {
    **stand_ins(),
    'collections.OrderedDict': OrderedDict,
    'builtins.set': set,
    'builtins.frozenset': frozenset,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    '_codecs.encode': _encode,
    **{str(dtype): dtype for dtype in STORAGE_DTYPES.values()},
}
