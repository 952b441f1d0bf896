"""What stock OpenMMLab or an old torch lacks.

Nothing here is about equilibria. It goes when the stock packages have it themselves.
"""

from .allow_list import allow_mmengine_checkpoints, stand_ins
from .installation import stand_in_for_missing_names, stand_in_for_missing_ops

__all__ = [
    'allow_mmengine_checkpoints',
    'stand_in_for_missing_names',
    'stand_in_for_missing_ops',
    'stand_ins',
]
