from .gradients import (
    EquilibriumGradient,
    ImplicitGradient,
    PhantomGradient,
    UnrolledGradient,
)
from .layer import EquilibriumLayer
from .solvers import (
    AndersonSolver,
    BroydenSolver,
    FixedPointSolver,
    LowRankInverse,
    PicardSolver,
    Solution,
    SolveStatus,
)
from .state import StateLayout

__all__ = [
    'AndersonSolver',
    'BroydenSolver',
    'EquilibriumGradient',
    'EquilibriumLayer',
    'FixedPointSolver',
    'ImplicitGradient',
    'LowRankInverse',
    'PhantomGradient',
    'PicardSolver',
    'Solution',
    'SolveStatus',
    'StateLayout',
    'UnrolledGradient',
]
