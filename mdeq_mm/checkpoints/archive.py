"""What a checkpoint file must be before anything in it is loaded."""

from __future__ import annotations

import mmap
import stat
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Union

from .messages import quote
from .outline_values import DamagedError, RefusedError
from .pickles import outline

_CHUNK = 1 << 20
# Records of a zip file, as its specification and torch's writer lay them out.
_END = struct.Struct('<4s4H2IH')
_END_64 = struct.Struct('<4sQ2H2I4Q')
_LOCATOR_64 = struct.Struct('<4sIQI')
_ENTRY = struct.Struct('<4s6H3I5H2I')
_HEADER = struct.Struct('<4s5H3I2H')
_TOO_LARGE = 0xFFFFFFFF
# What the older format of torch begins with, before the pickle of the content.
_NUMEL = struct.Struct('<q')
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Record(NamedTuple):
    start: int
    size: int
    checksum: int
    is_stored: bool


def check_archive(path: Union[str, Path]) -> None:
    """Makes sure that a file is a whole checkpoint, which takes no more than its size.

    Nothing in the file is loaded or run. Both formats of ``torch.save`` are known. In
    the newer one, a zip file, the checksums are compared, so that damage is found; the
    older one has none.

    Args:
        path (str or Path): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no regular file, is damaged or cut off, holds compressed
            data, a tar or a TorchScript archive, or tensors that are not dense or
            larger than what the file holds for them.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f'{path} is a directory, not a checkpoint file')
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f'{path} is a device or a pipe, not a checkpoint file')
    try:
        if not status.st_size:
            raise DamagedError('it is empty')
        with path.open('rb') as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with content:
            if content[:4] == b'PK\3\4':
                _check_zip(content)
            else:
                _check_legacy(content)
    except DamagedError as damage:
        raise ValueError(
            f'{path} is truncated, or is not what torch.save writes ({damage}); '
            'nothing in it was run'
        ) from damage
    except RefusedError as refusal:
        raise ValueError(
            f'{path} is refused and nothing in it was run: it {quote(str(refusal))}'
        ) from refusal


def _check_zip(content: mmap.mmap) -> None:
    records = _records(content)
    root = next(iter(records)).partition(b'/')[0]
    if any(name.endswith(b'/constants.pkl') for name in records):
        # torch < 2.6 would run its code.
        raise RefusedError('is a TorchScript archive, not what torch.save writes')
    if not all(record.is_stored for record in records.values()):
        raise DamagedError('its parts are compressed or encrypted')
    if root + b'/data.pkl' not in records:
        raise DamagedError('it has no data.pkl')
    if any(record.checksum for record in records.values()):  # torch can leave them out
        for name, record in records.items():
            if _checksum(content, record) != record.checksum:
                text = quote(name.decode('utf-8', 'replace'))
                raise DamagedError(f'the checksum of {text} is another')
    pickle = records[root + b'/data.pkl']
    found = outline(content, pickle.start, pickle.start + pickle.size)
    for storage in found.storages.values():
        name = root + b'/data/' + storage.key.encode('utf-8', 'surrogatepass')
        if name not in records or records[name].size != storage.n_bytes:
            raise DamagedError('a tensor has other bytes than it needs')


def _check_legacy(content: mmap.mmap) -> None:
    if _is_tar(content):
        raise RefusedError('is a tar archive, as torch has not written for years')
    end = len(content)
    place, parts = 0, []
    # Magic number, protocol, machine, content, order of the storages.
    for _ in range(5):
        parts.append(outline(content, place, end))
        if parts[0].root != _MAGIC:
            raise DamagedError('it does not begin like one')
        place = parts[-1].end
    keys, storages = parts[4].root, parts[3].storages
    if parts[1].root != _PROTOCOL or not isinstance(keys, list):
        raise DamagedError('its head is damaged')
    is_text = all(isinstance(key, str) for key in keys)
    if not is_text or sorted(keys) != sorted(storages):
        raise DamagedError('its storages are not those of its tensors')
    for key in keys:
        (numel,) = _unpack(_NUMEL, content, place)
        if numel * storages[key].item_size != storages[key].n_bytes:
            raise DamagedError('the size of a storage is damaged')
        place += _NUMEL.size + storages[key].n_bytes
    if place != end:
        raise DamagedError('its end is missing, or is not its end')


def _is_tar(content: mmap.mmap) -> bool:
    """Tells whether torch, which tries that first, would take a file for a tar."""
    try:
        tarfile.TarInfo.frombuf(content[: tarfile.BLOCKSIZE], 'utf-8', 'replace')
    except tarfile.HeaderError:
        return False
    return True


def _checksum(content: mmap.mmap, record: _Record) -> int:
    checksum = 0
    end = record.start + record.size
    for start in range(record.start, end, _CHUNK):
        checksum = zlib.crc32(content[start : min(start + _CHUNK, end)], checksum)
    return checksum


def _records(content: mmap.mmap) -> dict[bytes, _Record]:
    """Reads the directory of a zip file, in its order.

    It reads nothing but what every reader understands in the same way, so that torch
    cannot find another file than the one that was checked.
    """
    first, end, number = _directory(content)
    records: dict[bytes, _Record] = {}
    extents = []
    place = first
    for _ in range(number):
        name, header, record, place = _entry(content, place, end)
        records[name] = record
        extents.append((header, record.start + record.size))
    if place != end or len({name.lower() for name in records}) != number:
        raise DamagedError('its directory is damaged')
    extents = [*sorted(extents), (first, end)]
    if extents[0][0] != 0:
        raise DamagedError('its beginning is missing')
    if any(stop > start for (_, stop), (start, _) in zip(extents, extents[1:])):
        raise DamagedError('its parts overlap')
    return records


def _directory(content: mmap.mmap) -> tuple[int, int, int]:
    """Returns where the directory of a zip file begins and ends, and its entries."""
    end = len(content) - _END.size
    signature, *_, number, size, start, comment = _unpack(_END, content, end)
    if signature != b'PK\5\6' or comment:
        raise DamagedError('its end is missing')
    place = end - _LOCATOR_64.size
    if place >= 0 and content[place : place + 4] == b'PK\6\7':
        end = place - _END_64.size
        _, _, where, _ = _unpack(_LOCATOR_64, content, place)
        signature, *_, number, size, start = _unpack(_END_64, content, end)
        if signature != b'PK\6\6' or where != end:
            raise DamagedError('its end is damaged')
    if start + size != end or not number:
        raise DamagedError('its directory is not at its end')
    return start, end, number


def _entry(content: mmap.mmap, place: int, end: int) -> tuple[bytes, int, _Record, int]:
    """Reads an entry of the directory.

    Returns:
        tuple: Name; where the header of the record is; record; where the next entry is.
    """
    fields = _unpack(_ENTRY, content, place)
    flags, method, checksum = fields[3], fields[4], fields[7]
    n_name, n_extra, n_comment = fields[10:13]
    after_name = place + _ENTRY.size + n_name
    name = content[after_name - n_name : after_name]
    wide = _wide_sizes(content[after_name : after_name + n_extra])
    size, packed, header = (
        next(wide, -1) if value == _TOO_LARGE else value
        for value in (fields[9], fields[8], fields[16])
    )
    place = after_name + n_extra + n_comment
    if fields[0] != b'PK\1\2' or place > end or min(size, packed) < 0:
        raise DamagedError('its directory is damaged')
    if b'\0' in name or b'/' not in name:
        raise DamagedError('the names in it are not those of torch')
    start = _data_start(content, header, name)
    is_stored = not method and not flags & 1 and packed == size
    return name, header, _Record(start, packed, checksum, is_stored), place


def _wide_sizes(extra: bytes) -> Iterator[int]:
    """Yields the numbers that an entry has no room for, from its zip64 field."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from('<2H', extra)
        if kind == 1:
            for place in range(4, min(size + 4, len(extra)) - 7, 8):
                yield struct.unpack_from('<Q', extra, place)[0]
        extra = extra[4 + size :]


def _data_start(content: mmap.mmap, header: int, name: bytes) -> int:
    """Returns where the data behind a header begin."""
    signature, *_, n_name, n_extra = _unpack(_HEADER, content, header)
    start = header + _HEADER.size + n_name
    if signature != b'PK\3\4' or content[start - n_name : start] != name:
        raise DamagedError('a part of it is damaged')
    return start + n_extra


def _unpack(form: struct.Struct, content: mmap.mmap, place: int) -> tuple[Any, ...]:
    if not 0 <= place <= len(content) - form.size:
        raise DamagedError('it breaks off')
    return form.unpack_from(content, place)
