"""Models as files that run without this package."""

from .exporting import (
    DYNAMIC,
    FORMATS,
    TOLERANCE,
    Check,
    check_requirements,
    export,
    relative_difference,
)
from .fixed_evaluations import SOLVERS, FixedEvaluations, fixed_mode
from .network import DeployedNetwork

__all__ = [
    'DYNAMIC',
    'FORMATS',
    'SOLVERS',
    'TOLERANCE',
    'Check',
    'DeployedNetwork',
    'FixedEvaluations',
    'check_requirements',
    'export',
    'fixed_mode',
    'relative_difference',
]
