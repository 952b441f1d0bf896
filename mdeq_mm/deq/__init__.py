"""Deep equilibrium layers: cells, solvers, gradients and initial guesses."""

from .cell import Cell, FreezablePart, Frozen, current_frozen
from .forward_pass import EquilibriumOutput, ForwardPass
from .gradients import EquilibriumGradient, ImplicitGradient, PhantomGradient
from .guarded_start import GuardedStart
from .initial_guesses import (
    AdjointGuess,
    GradientGuess,
    InitialGuess,
    InverseJacobianGuess,
    LearnedGuess,
    PreviousGuess,
    ZeroGuess,
)
from .jacobian import spectral_radius, squared_frobenius_norm
from .layer import EquilibriumLayer, equilibrium_layers
from .modes import Equilibrium, Mode, Unrolled
from .parts import VariationalDropout, freezable_weight_norm
from .projection import project_weights, spectral_norm_bound
from .solvers import (
    AndersonSolver,
    BroydenSolver,
    FixedPointFunction,
    FixedPointSolver,
    LowRankInverse,
    MethodState,
    PicardSolver,
    ReducedFunction,
    Solution,
    SolveStatus,
)
from .state import StateLayout

__all__ = [
    'AdjointGuess',
    'AndersonSolver',
    'BroydenSolver',
    'Cell',
    'Equilibrium',
    'EquilibriumGradient',
    'EquilibriumLayer',
    'EquilibriumOutput',
    'FixedPointFunction',
    'FixedPointSolver',
    'ForwardPass',
    'FreezablePart',
    'Frozen',
    'GradientGuess',
    'GuardedStart',
    'ImplicitGradient',
    'InitialGuess',
    'InverseJacobianGuess',
    'LearnedGuess',
    'LowRankInverse',
    'MethodState',
    'Mode',
    'PhantomGradient',
    'PicardSolver',
    'PreviousGuess',
    'ReducedFunction',
    'Solution',
    'SolveStatus',
    'StateLayout',
    'Unrolled',
    'VariationalDropout',
    'ZeroGuess',
    'current_frozen',
    'equilibrium_layers',
    'freezable_weight_norm',
    'project_weights',
    'spectral_norm_bound',
    'spectral_radius',
    'squared_frobenius_norm',
]
