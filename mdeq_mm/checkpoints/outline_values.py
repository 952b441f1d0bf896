"""What stands for the objects that a checkpoint asks for while it is looked through."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# torch knows no more.
MAX_DIMENSIONS = 64
# What torch calls a storage of each type of number.
STORAGE_DTYPES = dict(
    DoubleStorage=torch.float64,
    FloatStorage=torch.float32,
    HalfStorage=torch.float16,
    BFloat16Storage=torch.bfloat16,
    LongStorage=torch.int64,
    IntStorage=torch.int32,
    ShortStorage=torch.int16,
    CharStorage=torch.int8,
    ByteStorage=torch.uint8,
    UntypedStorage=torch.uint8,
    BoolStorage=torch.bool,
    ComplexDoubleStorage=torch.complex128,
    ComplexFloatStorage=torch.complex64,
)
_UTILS = 'torch._utils.'
_HARMLESS = ('torch.Size', 'torch.device', 'torch.serialization._get_layout')


class DamagedError(Exception):
    """A file is none that ``torch.save`` writes. The message says why."""


class RefusedError(Exception):
    """A file asks for what no checkpoint needs. The message says for what."""


@dataclass(frozen=True)
class Name:
    """A class or function."""

    path: str


@dataclass(frozen=True)
class Storage:
    """Memory, which several tensors may share."""

    key: str
    n_bytes: int
    item_size: int


class Opaque:
    """Something of which it only matters that it is there."""


class Dense(Opaque):
    """A tensor."""


class Tuple(tuple[Any, ...]):  # noqa: SLOT001  tuples have no room for slots
    """A tuple that knows how many values it has when it is unfolded."""

    n_values: int


def unfold(items: Sequence[Any], limit: int) -> Tuple:
    """Makes a tuple that does not unfold to too many values.

    A tuple of twice the tuple before, and so on, is small until somebody goes through
    it, as its hash and its text do.

    Raises:
        RefusedError: If it unfolds to more values than the limit.
    """
    made = Tuple(items)
    made.n_values = len(items) + sum(
        item.n_values for item in items if isinstance(item, Tuple)
    )
    if made.n_values > limit:
        raise RefusedError('asks for a tuple that unfolds to more than the file holds')
    return made


def storage(reference: Any, limit: int) -> Storage:
    """Reads a reference to memory.

    Raises:
        DamagedError: If it is none that ``torch.save`` writes, or takes more bytes than
            the limit.
        RefusedError: If it is not that of a dense tensor.
    """
    kind, name, key, _, numel, *view = reference
    if kind not in ('storage', b'storage') or not isinstance(name, Name):
        raise RefusedError('asks for something else than the memory of a tensor')
    module, _, storage_type = name.path.rpartition('.')
    if module not in ('torch', 'torch.storage') or storage_type not in STORAGE_DTYPES:
        raise RefusedError(f'asks for {name.path}')
    key = key.decode() if isinstance(key, bytes) else key
    if not isinstance(key, str) or not _are_sizes(numel):
        raise DamagedError('the memory of a tensor has no size')
    if view and view != [None]:
        raise RefusedError(
            'asks for a view of memory, as torch has not written for years'
        )
    item_size = STORAGE_DTYPES[storage_type].itemsize
    if numel * item_size > limit:
        raise DamagedError(
            f'it asks for {numel * item_size:,} bytes for a tensor, and has {limit:,}'
        )
    return Storage(key, numel * item_size, item_size)


def call(function: Any, arguments: Any, limit: int, makes: bool = False) -> Opaque:
    """Checks a call, and returns what stands for its result.

    Args:
        function (Name): What is called.
        arguments (tuple): Its arguments.
        limit (int): The most bytes that it may ask for.
        makes (bool): Whether an object is made without a call of its ``__init__``.
            Defaults to False.

    Raises:
        DamagedError: If it is no call that ``torch.save`` writes.
        RefusedError: If it asks for more than the limit, or for a tensor that is not
            dense.
    """
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise DamagedError('a pickle calls what cannot be called')
    path = function.path
    if path.startswith(_UTILS) and not makes:
        return _rebuild(path[len(_UTILS) :], arguments, limit)
    if path == 'torch._tensor._rebuild_from_type_v2' and not makes:
        return call(arguments[0], arguments[2], limit)
    if path in _HARMLESS and not makes:
        return Opaque()
    if path.startswith('torch.'):
        raise RefusedError(f'asks for {path}')
    if path == '_codecs.encode' and arguments[1:] not in ((), ('latin1',)):
        raise RefusedError(f'asks for {path} to something else than latin1')
    size = 1
    for number in _integers(arguments):
        size *= abs(number) or 1
        if size > limit:
            raise RefusedError(f'asks for {path} of a size beyond that of the file')
    return Opaque()


def _rebuild(function: str, arguments: tuple[Any, ...], limit: int) -> Dense:
    """Checks that a tensor lies in its memory.

    One that has numbers several times, as an expanded buffer has, may be as large as
    the limit when it is copied.
    """
    if function in ('_rebuild_parameter', '_rebuild_parameter_with_state'):
        if not isinstance(arguments[0], Dense):
            raise DamagedError('a parameter is no tensor')
        return Dense()
    if function not in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3'):
        raise RefusedError(f'asks for {_UTILS}{function}, a tensor that is not dense')
    memory, offset, size, stride = arguments[:4]
    if not (
        isinstance(memory, Storage)
        and _are_sizes(offset, *size, *stride)
        and len(size) == len(stride) <= MAX_DIMENSIONS
    ):
        raise DamagedError('a tensor has no memory or no shape')
    item_size = memory.item_size
    if function == '_rebuild_tensor_v3':  # the memory is untyped
        dtype = getattr(torch, arguments[6].path.rpartition('.')[2])
        item_size = torch.empty(0, dtype=dtype).element_size()
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1
    n_bytes = (last if numel else 0) * item_size
    if n_bytes > memory.n_bytes or numel * item_size > limit:
        raise RefusedError(
            f'asks for more numbers than {memory.n_bytes:,} bytes of a tensor hold: '
            f'{tuple(size)}'
        )
    return Dense()


def _are_sizes(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _integers(values: Any) -> Iterator[int]:
    """Yields the integers among arguments; the shape of an array is a tuple in them."""
    for value in values:
        if type(value) is int:
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (inner for inner in value if type(inner) is int)
