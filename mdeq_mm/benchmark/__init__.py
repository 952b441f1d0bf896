from .backbones import STOCK_BACKBONES, Case, Subject, measure_models
from .memory import measure_memory
from .problems import Problem, evaluations_to, residuals
from .solvers import has_torchdeq, measure_solvers
from .sweep import Grid, sweep

__all__ = [
    'STOCK_BACKBONES',
    'Case',
    'Grid',
    'Problem',
    'Subject',
    'evaluations_to',
    'has_torchdeq',
    'measure_memory',
    'measure_models',
    'measure_solvers',
    'residuals',
    'sweep',
]
