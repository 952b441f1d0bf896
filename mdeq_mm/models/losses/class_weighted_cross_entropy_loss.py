"""Cross entropy of segmentation with weighted classes and ignored pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class ClassWeightedCrossEntropyLoss(nn.Module):
    """Cross entropy averaged over the weights of the classes of the valid pixels.

    It is the mean that PyTorch's weighted cross entropy takes: the sum over the valid
    pixels, divided by the sum of the weights of their classes. The stock
    ``CrossEntropyLoss`` of MMSegmentation cannot combine class weights with ignored
    pixels. Without a valid pixel the loss is zero. Any decode head takes it as
    ``loss_decode``.

    Args:
        class_weight (Sequence[float]): Weight of each class, not negative.
        loss_weight (float): Weight of the loss, not negative. Defaults to 1.0.
        loss_name (str): Name in the log; only what begins with ``'loss_'`` is
            differentiated. Defaults to ``'loss_ce'``.

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
                'class_weight must have one finite weight a class, not negative, '
                f'got {class_weight!r}'
            )
        if not loss_weight >= 0:
            raise ValueError(f'loss_weight must not be negative, got {loss_weight!r}')
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        # Not persistent: checkpoints stay those of the stock loss.
        self.register_buffer(
            'class_weight', torch.tensor(class_weight).float(), persistent=False
        )

    def forward(
        self,
        pred: Tensor,
        label: Tensor,
        weight: Optional[Tensor] = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Computes the loss.

        Args:
            pred (Tensor): Logits, ``(B, num_classes, H, W)``.
            label (Tensor): Classes, ``(B, H, W)``.
            weight (Tensor, optional): How much each pixel counts, ``(B, H, W)``, as
                pixel samplers give it. Defaults to None, all the same.
            ignore_index (int): Label of the pixels that do not count.
                Defaults to 255.

        Returns:
            Tensor: The loss, a scalar.

        Raises:
            ValueError: If ``pred`` has another number of classes.
        """
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
        total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        return self.loss_weight * losses.sum() / total
