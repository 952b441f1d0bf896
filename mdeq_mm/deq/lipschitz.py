"""Weights of a cell whose norms are bounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cell import Cell
from .parts import weight_norm_gains

N_ITERS = 6


def spectral_norm_bound(matrix: Tensor) -> Tensor:
    """Bounds the spectral norm of a matrix from above, at most 6 % too high.

    It is Gram iteration (Delattre et al., "Efficient Bound of Lipschitz Constant for
    Convolutional Layers by Gram Iteration", ICML 2023): the Frobenius norm of a power
    of ``W W^T``. Nothing is drawn at random, and nothing is kept from call to call.

    Args:
        matrix (Tensor): The matrix ``W``, ``(M, N)``, with at most 1,280 rows or
            columns for the 6 %.

    Returns:
        Tensor: The bound, a scalar.
    """
    power = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    power = power.to(torch.promote_types(power.dtype, torch.float32))
    log_scale = power.new_zeros(())
    for _ in range(N_ITERS):
        # A power of large or small numbers is out of range soon.
        scale = power.abs().amax().clamp_min(torch.finfo(power.dtype).tiny)
        log_scale = 2 * (log_scale + scale.log())
        power = power / scale
        power = power @ power.T
    return ((power.norm().log() + log_scale) / 2**N_ITERS).exp()


@torch.no_grad()
def project_weights(cell: Cell, max_norm: float, max_gain: float) -> None:
    """Scales weights of a cell down to a spectral norm, in place, and clips gains.

    The weight of a convolution counts as a matrix, ``(C_out, C_in * kh * kw)``. If its
    spectral norm is ``m``, the Lipschitz constant of the convolution is at most
    ``m * (ceil(kh / sh) * ceil(kw / sw)) ** 0.5``, with kernels of ``kh x kw`` and
    strides of ``sh`` and ``sw``: so many patches hold an input at most. That is true of
    convolutions that use their weight as it is, not of ``ConvWS``.

    Args:
        cell (Cell): The cell.
        max_norm (float): Largest spectral norm of the weight of a convolution or linear
            layer.
        max_gain (float): Largest absolute gain of a norm.
    """
    for module in cell.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = spectral_norm_bound(module.weight.flatten(1))
            factor = (bound / max_norm).clamp_min(1)
            # A normalised weight is computed from its gains.
            gains: list[Tensor] = [*weight_norm_gains(module)]
            for scaled in gains or [module.weight]:
                scaled.div_(factor)
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and (
            module.weight is not None
        ):
            module.weight.clamp_(-max_gain, max_gain)
