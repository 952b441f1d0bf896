from .anderson import AndersonSolver
from .base import FixedPointSolver, LowRankInverse, Solution, SolveStatus
from .broyden import BroydenSolver
from .picard import PicardSolver

__all__ = [
    'AndersonSolver',
    'BroydenSolver',
    'FixedPointSolver',
    'LowRankInverse',
    'PicardSolver',
    'Solution',
    'SolveStatus',
]
