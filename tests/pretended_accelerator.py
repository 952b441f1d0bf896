"""An accelerator that is not there: tensors that say they live on ``emu:0``.

Their numbers are on the CPU. What makes trouble on a real device makes trouble here:
mixing with tensors of the CPU is refused, autograd runs backward in a thread of its
own, and each read back to the host is noted, because a real device would have to be
waited for.

The device belongs to the process, and must be there before the first backward pass.
So ``pytest --device emu`` runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = 'emu'
# What begins a copy from one device to another, and may see both.
COPIES = ('aten::_to_copy', 'aten::copy_')
# What returns a number to the host, or a tensor whose size depends on numbers.
READS = {
    'aten::_local_scalar_dense',
    'aten::_unique2',
    'aten::allclose',
    'aten::bincount',
    'aten::equal',
    'aten::masked_select',
    'aten::nonzero',
    'aten::repeat_interleave',
    'aten::unique_consecutive',
    'aten::unique_dim',
}
# What torch makes of an empty tensor that it gives another shape.
FACTORIES = (
    *('arange', 'arange.start', 'arange.start_step', 'eye', 'eye.m', 'linspace'),
    *('logspace', 'randperm', 'tril_indices', 'triu_indices'),
)
# What autocast computes in its dtype, and what in float32, as on CUDA.
NARROW = (
    *('addmm', 'baddbmm', 'bmm', 'conv1d', 'conv2d', 'conv3d', 'linear', 'matmul'),
    *('mm', 'scaled_dot_product_attention'),
)
WIDE = (
    *('cross_entropy_loss', 'exp', 'group_norm', 'layer_norm', 'linalg_vector_norm'),
    *('log', 'mse_loss', 'nll_loss', 'nll_loss2d', 'nll_loss_nd', 'rsqrt'),
    *('log_softmax.int', 'norm.Scalar', 'softmax.int', 'sum', 'sum.dim_IntList'),
)


class Read(NamedTuple):
    """One read back to the host.

    Attributes:
        op (str): The operator that needs it.
        file (str): The file that called torch, mmengine left out.
        line (int): The line there.
    """

    op: str
    file: str
    line: int


_reads: list[Read] = []
_libraries: list[torch.library.Library] = []


class PretendedTensor(Tensor):
    """A tensor on the pretended device.

    Args:
        inner (Tensor): Its numbers, on the CPU.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f'{NAME}:0',
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        try:
            return _run(op, args, kwargs or {})
        except Exception:
            # In backward, torch 2.11 ends the process when Python raises an exception.
            if threading.current_thread() is not threading.main_thread():
                os.write(2, traceback.format_exc().encode())
            raise

    # torch knows no list, array or text of a subclass.
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(f'{NAME} tensors have no array: copy them to the CPU first')

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __repr__(self, **kwargs: Any) -> str:
        return f'{self.inner!r} on {NAME}'

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: PretendedTensor) -> None:
        Tensor.data.__set__(self, value)
        self.inner = value.inner


def _is_here(device: object) -> bool:
    return isinstance(device, torch.device) and device.type == NAME


def _run(op: Any, args: tuple, kwargs: dict) -> Any:
    """Runs an operator on the numbers, and says what a device would have said."""
    name = op._schema.name
    tensors = [x for x in _flat((*args, *kwargs.values())) if isinstance(x, Tensor)]
    if name not in COPIES and any(
        x.dim() > 0 and not isinstance(x, PretendedTensor) for x in tensors
    ):
        raise RuntimeError(
            f'{op} got tensors on more than one device: '
            + ', '.join(f'{tuple(x.shape)} on {x.device}' for x in tensors)
        )
    if any(isinstance(x, torch.Generator) for x in kwargs.values()):
        raise RuntimeError(f'{op} on {NAME} got a generator of the CPU')
    if _reads_back(name, args, kwargs):
        _note(name)
    wrappers = {id(x.inner): x for x in tensors if isinstance(x, PretendedTensor)}
    result = _call(op, _unwrap, args, kwargs)
    to_host = name == COPIES[0] and not _goes_here(args, kwargs)

    def wrap(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        # What changed in place is the tensor that it was.
        wrapper = wrappers.get(id(x))
        if wrapper is not None:
            if (wrapper.shape, wrapper.stride()) != (x.shape, x.stride()):
                with torch._C._DisableTorchDispatch():
                    geometry = x.size(), x.stride(), x.storage_offset()
                    Tensor.as_strided_(wrapper, *geometry)
            return wrapper
        return x if to_host or isinstance(x, PretendedTensor) else PretendedTensor(x)

    return args[0] if name == COPIES[1] else _map(wrap, result)


def _flat(x: Any) -> Iterator[object]:
    for item in x:
        if isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield item


def _map(function: Callable, x: Any) -> Any:
    # Several times faster than torch's own, and there are no dicts.
    if isinstance(x, (list, tuple)):
        return type(x)([_map(function, item) for item in x])
    return function(x)


def _call(op: Any, function: Callable, args: tuple, kwargs: dict) -> Any:
    """Calls an operator with what a function makes of its arguments."""
    return op(
        *_map(function, args), **{k: _map(function, x) for k, x in kwargs.items()}
    )


def _unwrap(x: object) -> object:
    if isinstance(x, PretendedTensor):
        return x.inner
    return torch.device('cpu') if _is_here(x) else x


def _goes_here(args: tuple, kwargs: dict) -> bool:
    """Whether the result of ``_to_copy`` is on the pretended device."""
    device = kwargs.get('device')
    return isinstance(args[0], PretendedTensor) if device is None else _is_here(device)


def _reads_back(name: str, args: tuple, kwargs: dict) -> bool:
    if name in READS:
        return True
    if name == COPIES[0]:
        return isinstance(args[0], PretendedTensor) and not _goes_here(args, kwargs)
    if name == COPIES[1]:
        target, source = (isinstance(x, PretendedTensor) for x in args[:2])
        return source and not target
    if name in ('aten::index', 'aten::index_put', 'aten::index_put_'):
        # A mask becomes as many numbers as it holds.
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    return False


def _note(op: str) -> None:
    frame = sys._getframe(1)
    skipped = (f'{os.sep}torch{os.sep}', f'{os.sep}mmengine{os.sep}', __file__)
    first = frame
    while frame is not None and any(s in frame.f_code.co_filename for s in skipped):
        frame = frame.f_back
    frame = frame or first
    _reads.append(Read(op, frame.f_code.co_filename, frame.f_lineno))


@contextlib.contextmanager
def reads_back(part_of_path: str = '') -> Iterator[list[Read]]:
    """Yields the reads back to the host, complete when the context ends.

    Args:
        part_of_path (str): Only reads of files whose path holds it count.
            Defaults to '', all.
    """
    begin, found = len(_reads), []
    try:
        yield found
    finally:
        found += [read for read in _reads[begin:] if part_of_path in read.file]


class _Module:
    """What torch asks of ``torch.emu``."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """The generator is that of the CPU, which has its seed already."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register() -> None:
    """Adds the device to torch.

    Raises:
        RuntimeError: If this torch cannot have a device that is written in Python.
    """
    if _libraries:
        return
    setup = '_setup_privateuseone_for_python_backend'
    if not hasattr(backend_registration, setup):
        raise RuntimeError(f'torch {torch.__version__} has no devices in Python')
    getattr(backend_registration, setup)(NAME, _Module())
    everything = torch.library.Library('_', 'IMPL')
    everything.fallback(_run_factory, 'PrivateUse1')
    everything.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    aten = torch.library.Library('aten', 'IMPL')
    # torch.tensor calls it without asking the tensors.
    aten.impl('_copy_from', _copy_from, 'PrivateUse1')
    for name in FACTORIES:
        aten.impl(name, partial(_run_factory, _operator(name)), 'PrivateUse1')
    for names, wide in ((NARROW, False), (WIDE, True)):
        for name in names:
            aten.impl(name, _autocast_kernel(name, wide), 'AutocastPrivateUse1')
    # What is loaded for the device stays on the CPU until it is copied to a tensor.
    torch.serialization.register_package(
        1,
        lambda storage: None,
        lambda storage, place: storage if NAME in place else None,
    )
    _libraries.extend([everything, aten])


def _operator(name: str) -> Any:
    packet, _, overload = name.partition('.')
    return getattr(getattr(torch.ops.aten, packet), overload or 'default')


def _run_factory(op: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(op, args, kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _run(torch.ops.aten.copy_.default, (target, source), {})
    return target


def _autocast_kernel(name: str, wide: bool) -> Callable:
    """Returns what autocast does with an operator: casts its operands, calls it."""
    op = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32 if wide else torch.get_autocast_dtype(NAME)

        def cast(x: object) -> object:
            is_cast = (
                isinstance(x, PretendedTensor)
                and x.is_floating_point()
                and x.dtype != torch.float64
            )
            return x.to(dtype) if is_cast else x

        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return _call(op, cast, args, kwargs)

    return kernel
