"""The part of the package that knows images, registered for OpenMMLab."""

from .backbones import MDEQ, DEQViT, EquilibriumBackbone
from .cells import MultiscaleCell, TransformerCell
from .initial_guesses import ProjectedGuess
from .losses import ClassWeightedCrossEntropyLoss
from .multi_task import MultiTaskModel
from .necks import MDEQFuse

__all__ = [
    'MDEQ',
    'ClassWeightedCrossEntropyLoss',
    'DEQViT',
    'EquilibriumBackbone',
    'MDEQFuse',
    'MultiTaskModel',
    'MultiscaleCell',
    'ProjectedGuess',
    'TransformerCell',
]
