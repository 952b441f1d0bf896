"""The part of the package that knows images, registered for OpenMMLab."""

from .backbones import MDEQ, EquilibriumBackbone
from .cells import MultiscaleCell
from .initial_guesses import ProjectedGuess
from .losses import ClassWeightedCrossEntropyLoss
from .multi_task import MultiTaskModel
from .necks import MDEQFuse

__all__ = [
    'MDEQ',
    'ClassWeightedCrossEntropyLoss',
    'EquilibriumBackbone',
    'MDEQFuse',
    'MultiTaskModel',
    'MultiscaleCell',
    'ProjectedGuess',
]
