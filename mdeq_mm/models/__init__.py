"""The part of the package that knows images, registered for OpenMMLab."""

from .backbones import MDEQ
from .cells import MultiscaleCell
from .initial_guesses import ProjectedGuess
from .losses import ClassWeightedCrossEntropyLoss
from .multi_task import MultiTaskModel
from .necks import MDEQFuse

__all__ = [
    'MDEQ',
    'ClassWeightedCrossEntropyLoss',
    'MDEQFuse',
    'MultiTaskModel',
    'MultiscaleCell',
    'ProjectedGuess',
]
