"""Cross entropy of segmentation with weighted classes and ignored pixels.

It has nothing to do with equilibria. It does what stock MMSegmentation cannot do and
the recipes of MDEQ need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...deq.checks import check_choice, check_number


@MODELS.register_module()
class ClassWeightedCrossEntropyLoss(nn.Module):
    """Cross entropy averaged over the weights of the classes of the valid pixels.

    This loss has nothing to do with equilibria. It fills a gap of MMSegmentation, whose
    ``CrossEntropyLoss`` cannot combine class weights with ignored pixels. Any decode
    head takes it as ``loss_decode``.

    The loss is the mean that PyTorch's weighted cross entropy takes: the sum over the
    valid pixels, divided by the sum of the weights of their classes. Without a valid
    pixel it is zero.

    Args:
        class_weight (Sequence[float]): Weight of each class, not negative.
        loss_weight (float): Weight of the loss, not negative. Defaults to 1.0.
        loss_name (str): Name in the log. MMSegmentation differentiates only losses
            whose name begins with ``'loss_'``. Defaults to ``'loss_ce'``.

    Raises:
        ValueError: If a weight is out of its range.

    Examples:
        >>> decode_head = dict(
        ...     loss_decode=dict(
        ...         type='ClassWeightedCrossEntropyLoss', class_weight=[0.8, 1.0, 1.2]
        ...     )
        ... )
    """

    def __init__(
        self,
        class_weight: Sequence[float],
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
    ) -> None:
        super().__init__()
        if not len(class_weight) or not all(
            0 <= weight < float('inf') for weight in class_weight
        ):
            raise ValueError(
                'class_weight must have one finite weight per class, not negative, '
                f'got {class_weight!r}'
            )
        check_number('loss_weight', loss_weight, least=0)
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        # Not persistent, so that checkpoints have the keys of the stock loss.
        self.class_weight: Tensor
        self.register_buffer(
            'class_weight', torch.tensor(class_weight).float(), persistent=False
        )

    def forward(
        self,
        pred: Tensor,
        label: Tensor,
        weight: Optional[Tensor] = None,
        avg_factor: Optional[float] = None,
        reduction_override: Optional[str] = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Computes the loss.

        The arguments are those of the stock ``CrossEntropyLoss``.

        Args:
            pred (Tensor): Logits, ``(B, num_classes, H, W)``.
            label (Tensor): Classes, int64, ``(B, H, W)``.
            weight (Tensor, optional): How much each pixel counts, ``(B, H, W)``. Pixel
                samplers give it. Defaults to None, all pixels count the same.
            avg_factor (float, optional): What the mean divides by. Defaults to None,
                the sum of the weights.
            reduction_override (str, optional): ``'none'`` for the losses of all
                pixels, as ``OHEMPixelSampler`` asks for, ``'sum'`` or ``'mean'``.
                Defaults to None, the mean.
            ignore_index (int): Label of the pixels that do not count.
                Defaults to 255.

        Returns:
            Tensor: The loss, a scalar, in float32 or float64; ``(B, H, W)`` with
            ``reduction_override='none'``.

        Raises:
            ValueError: If the number of classes of ``pred`` is not that of
                ``class_weight``, or the reduction is unknown, or ``avg_factor`` is
                given for something else than a mean.
        """
        reduction = 'mean' if reduction_override is None else reduction_override
        check_choice('reduction_override', reduction, ('none', 'mean', 'sum'))
        if avg_factor is not None and reduction != 'mean':
            raise ValueError(
                f'avg_factor needs a mean, got reduction_override={reduction!r}'
            )
        n_classes = len(self.class_weight)
        if pred.shape[1] != n_classes:
            raise ValueError(
                f'class_weight has {n_classes} classes, but pred has {pred.shape[1]}'
            )
        # Half precision has too few digits to sum over the pixels of a batch.
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
        class_weight = self.class_weight.to(pred.dtype)
        losses = F.cross_entropy(
            pred, label, class_weight, ignore_index=ignore_index, reduction='none'
        )
        valid = label != ignore_index
        weights = class_weight[label.where(valid, torch.zeros_like(label))] * valid
        if weight is not None:
            losses, weights = losses * weight, weights * weight
        if reduction == 'none':
            return self.loss_weight * losses
        total = self.loss_weight * losses.sum()
        if reduction == 'sum':
            return total
        if avg_factor is not None:
            return total / avg_factor
        return total / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
