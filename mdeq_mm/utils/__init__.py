from .compat import (
    allow_mmengine_checkpoints,
    check_versions,
    stand_in_for_missing_ops,
)

__all__ = [
    'allow_mmengine_checkpoints',
    'check_versions',
    'stand_in_for_missing_ops',
]
