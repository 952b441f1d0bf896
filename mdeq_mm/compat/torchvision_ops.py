"""The compiled ops of mmcv that torchvision has too, with the arguments of mmcv's.

``mmcv.ops`` calls each of them by position and keyword, as it calls what is compiled.
An op that is given a tensor ``output`` or ``grad_input`` writes its result there.

``roi_pool`` is not among them: mmcv pools between the corners of a region, torchvision
rounds them first.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Returns the indices of the boxes that no better one covers, best first.

    Args:
        bboxes (Tensor): Corners ``x1, y1, x2, y2``, ``(N, 4)``.
        scores (Tensor): Scores, ``(N, )``.
        iou_threshold (float): The largest overlap that is kept.
        offset (int): What a side is longer than the difference of its ends: 0 or 1.

    Raises:
        ImportError: If torchvision is not installed.
    """
    # A side that is longer by one is that of a box that ends one later.
    ends = bboxes.new_tensor([0, 0, offset, offset])
    return _torchvision_ops('nms').nms(bboxes + ends, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,  # noqa: A002  mmcv's name for it
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Averages bilinear samples of a feature map in each bin of each region.

    Args:
        input (Tensor): Feature map, ``(B, C, H, W)``.
        rois (Tensor): Regions, index of the image and corners, ``(N, 5)``.
        output (Tensor): The result, ``(N, C, aligned_height, aligned_width)``.
        argmax_y (Tensor): Not used, nor is the next: an average has no maximum.
        argmax_x (Tensor): See ``argmax_y``.
        aligned_height (int): Rows of bins.
        aligned_width (int): Columns of bins.
        spatial_scale (float): Pixels of the map per pixel of the image.
        sampling_ratio (int): Samples per bin and side, 0 for as many as its pixels.
        pool_mode (int): 1, the average. 0 is the maximum, which torchvision lacks.
        aligned (bool): Whether corners are moved by half a pixel of the map.

    Raises:
        ImportError: If the maximum is asked for, or torchvision is not installed.
    """
    if pool_mode != 1:
        raise ImportError(
            "the compiled op 'roi_align_forward' with pool_mode='max' is neither part "
            'of mmcv-lite nor of torchvision: install mmcv instead of mmcv-lite to use '
            'it'
        )
    size = (aligned_height, aligned_width)
    align = _torchvision_ops('roi_align_forward').roi_align
    output.copy_(align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Computes the gradient of :func:`roi_align_forward` with respect to its map.

    The average is linear, so the gradient is the same at every map.

    Args:
        grad_output (Tensor): Gradient of the result, as that one is shaped.
        rois (Tensor): As in the forward pass, and so are the arguments not named here.
        argmax_y (Tensor): Not used.
        argmax_x (Tensor): Not used.
        grad_input (Tensor): The gradient, ``(B, C, H, W)``.
        aligned_height (int): Rows of bins.
        aligned_width (int): Columns of bins.
        spatial_scale (float): Pixels of the map per pixel of the image.
        sampling_ratio (int): Samples per bin and side.
        pool_mode (int): 1, the average.
        aligned (bool): Whether corners are moved by half a pixel of the map.
    """
    align = _torchvision_ops('roi_align_backward').roi_align
    size = (aligned_height, aligned_width)
    with torch.enable_grad():
        at = torch.zeros_like(grad_input, requires_grad=True)
        output = align(at, rois, size, spatial_scale, sampling_ratio, aligned)
    grad_input.copy_(torch.autograd.grad(output, at, grad_output)[0])


def _torchvision_ops(name: str) -> ModuleType:
    """Returns ``torchvision.ops``, for the op of that name.

    Raises:
        ImportError: If torchvision is not installed.
    """
    try:
        from torchvision import ops
    except ModuleNotFoundError as error:
        raise ImportError(
            f'the compiled op {name!r} is not part of mmcv-lite: install torchvision, '
            'whose own is used then, or mmcv instead of mmcv-lite'
        ) from error
    return ops


OPS = {op.__name__: op for op in (nms, roi_align_forward, roi_align_backward)}
