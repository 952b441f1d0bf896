"""Fixed-point solvers: the loop that all share, and one file per method."""

from .anderson import AndersonSolver
from .base import FixedPointFunction, FixedPointSolver, MethodState
from .broyden import BroydenSolver
from .low_rank import LowRankInverse
from .picard import PicardSolver
from .solution import Solution, SolveStatus

__all__ = [
    'AndersonSolver',
    'BroydenSolver',
    'FixedPointFunction',
    'FixedPointSolver',
    'LowRankInverse',
    'MethodState',
    'PicardSolver',
    'Solution',
    'SolveStatus',
]
