from .gradients import (
    EquilibriumGradient,
    ImplicitGradient,
    PhantomGradient,
    UnrolledGradient,
)
from .jacobian import spectral_radius, squared_frobenius_norm
from .layer import EquilibriumLayer, Solve
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
    'Solve',
    'SolveStatus',
    'StateLayout',
    'UnrolledGradient',
    'spectral_radius',
    'squared_frobenius_norm',
]
