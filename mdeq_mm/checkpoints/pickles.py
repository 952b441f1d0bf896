"""What a pickle of ``torch.save`` would build, found out without building it.

``torch.load`` does what the pickle of a file says, and allocates what it asks for. So
does this machine, but with stand-ins: it calls nothing, and takes no more memory than
the file has bytes, times a constant.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from .outline_values import (
    DamagedError,
    Dense,
    Name,
    Opaque,
    RefusedError,
    Storage,
    call,
    unfold,
)
from .outline_values import storage as storage_of

# What torch's safe unpickler knows.
MAX_PROTOCOL = 3
# Far more than the largest training checkpoints have: some fifty per tensor.
MAX_STEPS = 2_000_000
# What Python says where the values on the stack are not those that a step needs.
_FAULTS = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
# The opcodes are those that torch's safe unpickler knows. Some push a constant, some a
# number that follows; some take from the memo or put into it.
_CONSTANTS: dict[bytes, Any] = {b'N': None, b'\x88': True, b'\x89': False, b')': ()}
_NUMBERS = {b'K': '<B', b'M': '<H', b'J': '<i', b'G': '>d'}
_GETS = {b'h': '<B', b'j': '<I'}
_PUTS = {b'q': '<B', b'r': '<I'}
_TUPLES = {b'\x85': 1, b'\x86': 2, b'\x87': 3}


class Outline(NamedTuple):
    """What a pickle would build.

    Attributes:
        end (int): Where the pickle ends.
        root (object): Its value, as far as it is plain: numbers, strings, lists, and
            tuples; a stand-in for anything else.
        storages (dict[str, Storage]): Memory of the tensors, by its key.
    """

    end: int
    root: Any
    storages: dict[str, Storage]


def outline(content: Any, start: int, end: int) -> Outline:
    """Goes through a pickle.

    Args:
        content (bytes or mmap): The file.
        start (int): Where the pickle begins.
        end (int): Where it ends at the latest.

    Returns:
        Outline: What it would build.

    Raises:
        DamagedError: If it is none that ``torch.save`` writes.
        RefusedError: If it asks for more memory than the file has bytes, or for tensors
            that are not dense.
    """
    machine = _Machine(content, start, end)
    try:
        root = machine.run()
    except _FAULTS as error:
        raise DamagedError(f'the pickle at byte {start} is damaged') from error
    return Outline(machine.position, root, machine.storages)


class _Machine:
    def __init__(self, content: Any, start: int, end: int) -> None:
        self.content, self.position, self.end = content, start, end
        self.n_bytes = len(content)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self.take(1)
            if code == b'.':
                return self.stack.pop()
            if not (self.push(code) or self.collect(code) or self.build(code)):
                raise DamagedError(f'opcode {code!r} at byte {self.position - 1}')
        raise RefusedError(f'asks for more than {MAX_STEPS:,} steps')

    def push(self, code: bytes) -> bool:
        """Does a step that puts a value onto the stack, or into the memo."""
        value: Any
        if code in _CONSTANTS:
            value = _CONSTANTS[code]
        elif code in _NUMBERS:
            value = self.number(_NUMBERS[code])
        elif code in _GETS:
            value = self.memo[self.number(_GETS[code])]
        elif code == b'X':
            value = self.take(self.number('<I')).decode('utf-8', 'surrogatepass')
        elif code == b'U':
            value = self.take(self.number('<B'))
        elif code == b'\x8a':
            value = int.from_bytes(self.take(self.number('<B')), 'little', signed=True)
        elif code == b'c':
            module = self.line()
            value = Name(f'{module}.{self.line()}')
        elif code == b']':
            value = []
        elif code in (b'}', b'\x8f'):
            value = Opaque()
        elif code in _PUTS:
            self.memo[self.number(_PUTS[code])] = self.stack[-1]
            return True
        else:
            return False
        self.stack.append(value)
        return True

    def collect(self, code: bytes) -> bool:
        """Does a step that takes several values off the stack."""
        if code == b'(':
            self.marks.append(self.stack)
            self.stack = []
        elif code in _TUPLES:
            items = self.pop(_TUPLES[code])
            self.stack.append(unfold(items, self.n_bytes))
        elif code == b't':
            items = self.pop_mark()
            self.stack.append(unfold(items, self.n_bytes))
        elif code in (b'a', b'e'):
            items = self.pop(1) if code == b'a' else self.pop_mark()
            if not isinstance(self.stack[-1], list):
                raise DamagedError('a pickle extends what is no list')
            self.stack[-1].extend(items)
        elif code == b's':
            self.pop(2)
        elif code == b'u':
            self.pop_mark()
        else:
            return False
        return True

    def build(self, code: bytes) -> bool:
        """Does a step that would make an object or change one."""
        if code == b'\x80':
            protocol = self.take(1)[0]
            if protocol > MAX_PROTOCOL:
                raise RefusedError(
                    f'has protocol {protocol} of pickle. The safe reader of torch '
                    f'knows those up to {MAX_PROTOCOL}, torch.save writes 2'
                )
        elif code == b'Q':
            found = storage_of(self.stack.pop(), self.n_bytes)
            if found != self.storages.setdefault(found.key, found):
                raise DamagedError('tensors do not agree on the size of their memory')
            self.stack.append(found)
        elif code in (b'R', b'\x81'):
            function, arguments = self.pop(2)
            made = call(function, arguments, self.n_bytes, makes=code == b'\x81')
            self.stack.append(made)
        elif code == b'b':
            self.stack.pop()
            if isinstance(self.stack[-1], Dense):
                raise RefusedError('asks for a tensor with a state of its own')
        else:
            return False
        return True

    def take(self, n_bytes: int) -> bytes:
        """Reads bytes."""
        start, self.position = self.position, self.position + n_bytes
        if self.position > self.end:
            raise DamagedError('it breaks off')
        return self.content[start : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        stop = self.content.find(b'\n', self.position, self.end)
        return self.take(max(stop + 1 - self.position, 1))[:-1].decode()

    def pop(self, n_items: int) -> list[Any]:
        items = self.stack[-n_items:]
        if len(items) < n_items:
            raise DamagedError('it takes what is not there')
        del self.stack[-n_items:]
        return items

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items
