"""Pictures: bars, budgets, convergence, evaluations, segmentations."""

from .bars import plot_bars
from .budgets import plot_budgets
from .convergence import plot_convergence
from .evaluations import plot_evaluations
from .segmentation import color_flag, paint, plot_segmentations, segment_samples

__all__ = [
    'color_flag',
    'paint',
    'plot_bars',
    'plot_budgets',
    'plot_convergence',
    'plot_evaluations',
    'plot_segmentations',
    'segment_samples',
]
