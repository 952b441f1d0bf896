"""Multiscale deep equilibrium models for OpenMMLab.

Importing the package registers everything; in a config that is
``custom_imports = dict(imports=['mdeq_mm'])``.
"""

from .installed import check_versions

check_versions()

from .compat import (  # noqa: E402
    allow_mmengine_checkpoints,
    stand_in_for_missing_names,
    stand_in_for_missing_ops,
)

stand_in_for_missing_names()
stand_in_for_missing_ops()
allow_mmengine_checkpoints()

from . import apis, checkpoints, deq, engine, evaluation, models  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    '__version__',
    'apis',
    'checkpoints',
    'deq',
    'engine',
    'evaluation',
    'models',
]
