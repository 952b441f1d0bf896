"""Writing a network to a file that runs without this package, and checking the file."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Optional

import torch
from mmengine.utils import digit_version
from torch import Tensor

from ..benchmark import interleave
from ..deq.checks import check_choice
from .network import DeployedNetwork

FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}
DYNAMIC = ('batch', 'size')
TOLERANCE = 1e-4
MIN_TORCH = '2.6'

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """How an exported file compares with PyTorch on one batch.

    Attributes:
        shape (tuple[int, ...]): Shape of the batch.
        difference (float): The largest difference of a logit, relative to the largest
            logit.
        seconds (float): Processor time of the file.
        torch_seconds (float): Processor time of PyTorch for the same evaluations.
    """

    shape: tuple[int, ...]
    difference: float
    seconds: float
    torch_seconds: float


def check_requirements(file_format: str) -> None:
    """Checks that a format can be written here.

    Args:
        file_format (str): ``'onnx'`` or ``'torch'``.

    Raises:
        ValueError: If the format is another one.
        RuntimeError: If torch is too old.
        ImportError: If a package is missing.
    """
    check_choice('file_format', file_format, tuple(FORMATS))
    if digit_version(torch.__version__) < digit_version(MIN_TORCH):
        raise RuntimeError(
            f'export needs torch {MIN_TORCH} or newer, this is torch '
            f'{torch.__version__}'
        )
    needed = ('onnx', 'onnxscript', 'onnxruntime') if file_format == 'onnx' else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'{", ".join(missing)} must be installed to export to ONNX: '
            'pip install "mdeq_mm[deploy]"'
        )


def export(
    network: DeployedNetwork,
    path: Path,
    images: Tensor,
    file_format: str = 'onnx',
    dynamic: Optional[Collection[str]] = None,
    tolerance: float = TOLERANCE,
) -> list[Check]:
    """Writes a network to a file, if the file computes what PyTorch computes.

    The file is compared on ``images``. With a dynamic batch or size it is compared on a
    second batch, too, of one image more or of other, odd sizes.

    Args:
        network (DeployedNetwork): The network.
        path (Path): The file. It appears when it has passed the comparison.
        images (Tensor): A batch of images, ``(B, C, H, W)``.
        file_format (str): ``'onnx'``, or ``'torch'`` for a program of ``torch.export``.
            Defaults to ``'onnx'``.
        dynamic (Collection[str], optional): What may differ from one run of the file to
            another: ``'batch'``, the number of images; ``'size'``, their height and
            width. Defaults to None, :attr:`DeployedNetwork.dynamic`.
        tolerance (float): The largest :attr:`Check.difference` that is allowed.
            Defaults to 1e-4.

    Returns:
        list[Check]: The comparisons.

    Raises:
        ImportError: If a package is missing.
        RuntimeError: If torch is too old, cannot record the network, or the file
            computes something else.
        ValueError: If an argument is out of its range, or the network computes NaN.
    """
    check_requirements(file_format)
    dynamic = network.dynamic if dynamic is None else dynamic
    for name in dynamic:
        check_choice('dynamic', name, DYNAMIC)
    if not set(dynamic) <= set(network.dynamic):
        raise ValueError(
            f'dynamic must be some of {network.dynamic} for a model with '
            f'align_corners=True, got {tuple(dynamic)}'
        )
    if not network(images).isfinite().all():
        raise ValueError(
            'network must have finite logits, those of images are NaN or infinite'
        )
    program = record(network, images, dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unchecked = Path(folder, path.name)
        write(program, unchecked, file_format)
        function = load(unchecked, file_format)
        checks = []
        for batch in _batches(network, images, dynamic):
            checks.append(compare(function, network, batch))
            if not checks[-1].difference <= tolerance:
                raise RuntimeError(
                    f'the exported file differs from PyTorch by '
                    f'{checks[-1].difference:.1e} of the largest logit at images of '
                    f'{checks[-1].shape}, more than {tolerance:.1e}; {path} is not '
                    'written'
                )
        unchecked.replace(path)
    return checks


def record(
    network: DeployedNetwork, images: Tensor, dynamic: Collection[str]
) -> torch.export.ExportedProgram:
    """Records a network with ``torch.export``; see :func:`export`.

    Raises:
        RuntimeError: If torch cannot record it.
    """
    dims: dict[int, object] = {}
    if 'batch' in dynamic:
        dims[0] = torch.export.Dim('batch', min=1)
        if len(images) == 1:
            # torch takes a size of 1 for one that cannot change.
            images = torch.cat([images, images])
    if 'size' in dynamic:
        dims.update({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC})
    shapes = {'images': dims or None}
    try:
        with torch.no_grad():
            return torch.export.export(
                network, (images,), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # of many kinds, some of them private
        raise RuntimeError(
            f'torch.export cannot record the model with dynamic={tuple(dynamic)}. '
            'Where its head needs a fixed size, leave size out'
        ) from error


def write(program: torch.export.ExportedProgram, path: Path, file_format: str) -> None:
    """Writes a recorded network.

    Args:
        program (ExportedProgram): The recorded network.
        path (Path): The file.
        file_format (str): ``'onnx'`` or ``'torch'``.
    """
    if file_format == 'torch':
        torch.export.save(program, path)
        return
    torch.onnx.export(
        program,
        f=str(path),
        input_names=['images'],
        output_names=['logits'],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def load(path: Path, file_format: str) -> Function:
    """Returns what a file computes, on the CPU and with as many threads as PyTorch.

    Args:
        path (Path): The file.
        file_format (str): ``'onnx'`` or ``'torch'``.
    """
    if file_format == 'torch':
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {'images': images.numpy()})
        return torch.from_numpy(logits)

    return run


def compare(
    function: Function, network: DeployedNetwork, images: Tensor, repeats: int = 3
) -> Check:
    """Compares what a file computes with what PyTorch computes.

    Args:
        function (Callable): What the file computes.
        network (DeployedNetwork): The network.
        images (Tensor): A batch of images, ``(B, C, H, W)``.
        repeats (int): How often to time both. Defaults to 3.
    """
    difference = relative_difference(function(images), network(images))
    seconds = interleave(
        {True: partial(function, images), False: partial(network, images)},
        repeats,
        'cpu',
    )
    return Check(
        tuple(images.shape), difference, median(seconds[True]), median(seconds[False])
    )


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest of ``expected``."""
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((logits - expected).abs().max() / scale)


def _batches(
    network: DeployedNetwork, images: Tensor, dynamic: Collection[str]
) -> Iterator[Tensor]:
    """Yields the batches to compare on."""
    yield images
    batch_size, _, height, width = images.shape
    if 'batch' in dynamic:
        batch_size += 1
    if 'size' in dynamic:
        height, width = (height | 1) + 2, (width | 1) + 4
    if dynamic:
        yield network.example(batch_size, height, width)
