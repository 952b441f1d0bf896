from .anderson import AndersonSolver
from .base import FixedPointSolver
from .broyden import BroydenSolver
from .picard import PicardSolver
from .solution import LowRankInverse, Solution, SolveStatus

__all__ = [
    'AndersonSolver',
    'BroydenSolver',
    'FixedPointSolver',
    'LowRankInverse',
    'PicardSolver',
    'Solution',
    'SolveStatus',
]
