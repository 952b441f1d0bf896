"""Fixed-point solvers: the loop that all share, and one file per method."""

from .anderson import AndersonSolver
from .base import FixedPointSolver, MethodState
from .broyden import BroydenSolver
from .low_rank import LowRankInverse
from .picard import PicardSolver
from .reduced import FixedPointFunction, ReducedFunction
from .solution import Solution, SolveStatus

__all__ = [
    'AndersonSolver',
    'BroydenSolver',
    'FixedPointFunction',
    'FixedPointSolver',
    'LowRankInverse',
    'MethodState',
    'PicardSolver',
    'ReducedFunction',
    'Solution',
    'SolveStatus',
]
