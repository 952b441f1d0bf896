from .gradients import (
    EquilibriumGradient,
    ImplicitGradient,
    PhantomGradient,
    UnrolledGradient,
)
from .initial_guess import InitialGuess, PreviousGuess, ZeroGuess
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
    'InitialGuess',
    'LowRankInverse',
    'PhantomGradient',
    'PicardSolver',
    'PreviousGuess',
    'Solution',
    'Solve',
    'SolveStatus',
    'StateLayout',
    'UnrolledGradient',
    'ZeroGuess',
    'spectral_radius',
    'squared_frobenius_norm',
]
