"""Which classes a training checkpoint of mmengine may hold, and how they are rebuilt.

Since torch 2.6 ``torch.load`` refuses every class that is not on a list. mmengine puts
log histories into its checkpoints. They hold numpy arrays and the names of their own
methods, none of which is on that list.

Numpy's own classes must not be added: torch hands an object of a listed class the state
that the file holds, and numpy believes it. A state that says of a dtype that it holds
Python objects makes numpy read the bytes of the file as their addresses. So this module
puts stand-ins on the list under the names that the file uses. They accept what mmengine
writes, arrays and scalars of plain numbers, and refuse everything else.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any, Optional

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

PLAIN_KINDS = 'biufc'


def allow_mmengine_checkpoints() -> None:
    """Lets torch >= 2.6 load the training checkpoints of mmengine.

    An older torch keeps no list, or one that takes no other names, and loads them
    without asking.
    """
    if digit_version(torch.__version__) >= digit_version('2.6'):
        allowed: list[Any] = [(cls, name) for name, cls in stand_ins().items()]
        torch.serialization.add_safe_globals(allowed)


def stand_ins() -> dict[str, Any]:
    """Returns the classes and functions of this module, by the name in a file."""
    found: dict[str, Any] = {
        'mmengine.logging.history_buffer.HistoryBuffer': LoadedHistoryBuffer,
        'builtins.getattr': history_buffer_attribute,
        'builtins.bytes': no_bytes,
        'numpy.ndarray': PlainArray,
        'numpy.dtype': PlainDtype,
    }
    # A checkpoint may come from numpy 1 or numpy 2, which name this module differently.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        found[f'{module}._reconstruct'] = reconstruct_array
        found[f'{module}.scalar'] = plain_scalar
    return found


class PlainDtype:
    """Stands in for ``numpy.dtype``: a plain number, in the byte order it was stored.

    Args:
        code (str): Kind and size, such as ``'f8'``.
        align (bool): Has no meaning for a plain number.
        copy (bool): The same.

    Raises:
        UnpicklingError: If the code is that of anything but a plain number.
    """

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or code[:1] not in PLAIN_KINDS:
            raise UnpicklingError(f'a checkpoint may not hold the dtype {code!r}')
        try:
            self.dtype = np.dtype(code)
        except TypeError as error:
            raise UnpicklingError(
                f'a checkpoint may not hold the dtype {code!r}'
            ) from error
        if self.dtype.kind not in PLAIN_KINDS or self.dtype.hasobject:
            raise UnpicklingError(f'a checkpoint may not hold the dtype {code!r}')

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order. Nothing else of a plain number can be different."""
        plain = (None, None, None, -1, -1, 0)
        if not (
            isinstance(state, tuple)
            and len(state) == 8
            and state[0] == 3
            and state[1] in ('<', '>', '|', '=')
            and state[2:] == plain
        ):
            raise UnpicklingError('a checkpoint holds a dtype with a strange state')
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Stands in for ``numpy.ndarray``: an array of plain numbers."""

    def __new__(cls, *args: Any) -> PlainArray:
        """Makes an empty array.

        Raises:
            UnpicklingError: If the file asks for a shape, which would take memory.
        """
        if args:
            raise UnpicklingError('a checkpoint may not make an array by its class')
        return np.zeros(0).view(cls)

    def __setstate__(self, state: Any) -> None:
        """Takes shape, dtype and bytes, which have to fit each other."""
        if not (isinstance(state, tuple) and len(state) == 5):
            raise UnpicklingError('a checkpoint holds an array with a strange state')
        version, shape, dtype, is_fortran, data = state
        if not (
            version == 1
            and isinstance(shape, tuple)
            and all(type(size) is int and size >= 0 for size in shape)
            and isinstance(dtype, PlainDtype)
            and isinstance(is_fortran, bool)
            and isinstance(data, bytes)
        ):
            raise UnpicklingError('a checkpoint holds an array with a strange state')
        n_bytes = dtype.dtype.itemsize
        for size in shape:
            n_bytes *= size
        if len(data) != n_bytes:
            raise UnpicklingError(
                f'a checkpoint holds an array of shape {shape} with {len(data)} bytes '
                f'instead of {n_bytes}'
            )
        plain: Any = (version, shape, dtype.dtype, is_fortran, data)
        super().__setstate__(plain)

    def __reduce__(self) -> Any:
        # Saved again, it is an ordinary array.
        return self.view(np.ndarray).__reduce__()


def no_bytes(*args: Any) -> bytes:
    """Stands in for ``bytes``, which pickles call where an array is empty."""
    if args:
        raise UnpicklingError('a checkpoint may not make bytes by their class')
    return b''


def reconstruct_array(cls: Any, shape: Any, code: Any) -> PlainArray:
    """Stands in for numpy's function that makes an empty array, to be filled."""
    if cls is not PlainArray or shape != (0,):
        raise UnpicklingError('a checkpoint holds an array of an unknown kind')
    return PlainArray()


def plain_scalar(dtype: Any, data: Optional[Any] = None) -> np.generic:
    """Stands in for numpy's function that makes a scalar."""
    if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes):
        raise UnpicklingError('a checkpoint holds a scalar of an unknown kind')
    if len(data) != dtype.dtype.itemsize:
        raise UnpicklingError(
            f'a checkpoint holds a scalar of {dtype.dtype} with {len(data)} bytes'
        )
    return np.frombuffer(data, dtype.dtype)[0]


class LoadedHistoryBuffer(HistoryBuffer):
    """Stands in for :class:`HistoryBuffer` until it has been given its state."""

    def __setstate__(self, state: Any) -> None:
        """Becomes an ordinary :class:`HistoryBuffer` with ordinary arrays."""
        names = ('_log_history', '_count_history')
        if not (
            isinstance(state, dict)
            and set(state) <= {*names, 'max_length', 'statistics_methods'}
            and all(isinstance(state.get(name), PlainArray) for name in names)
            and type(state.get('max_length')) is int
        ):
            raise UnpicklingError('a checkpoint holds a log history of an unknown kind')
        # The methods are those of the class, for every history of the process. A file
        # has no say in them.
        plain = {name: state[name].view(np.ndarray) for name in names}
        self.__class__ = HistoryBuffer
        self.__setstate__(dict(plain, max_length=state['max_length']))


def history_buffer_attribute(owner: Any, name: Any) -> Any:
    """Stands in for ``getattr``, for :class:`HistoryBuffer` alone.

    Raises:
        UnpicklingError: If an attribute of something else is asked for.
    """
    statistics = ('mean', 'max', 'min', 'current')
    if owner is not LoadedHistoryBuffer or name not in statistics:
        raise UnpicklingError(f'a checkpoint may not read {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)
