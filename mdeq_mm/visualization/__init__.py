"""Pictures: bars of measured ratios, budgets, convergence, segmentations."""

from .bars import plot_bars
from .budgets import plot_budgets
from .convergence import plot_convergence
from .segmentation import paint, plot_segmentations, segment_samples

__all__ = [
    'paint',
    'plot_bars',
    'plot_budgets',
    'plot_convergence',
    'plot_segmentations',
    'segment_samples',
]
