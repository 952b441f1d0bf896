"""Pictures: bars, budgets, convergence, evaluations, residuals, segmentations."""

from .bars import plot_bars
from .budgets import plot_budgets
from .convergence import convergence_figure, plot_convergence
from .evaluations import plot_evaluations
from .residuals import recorded_residuals, residual_maps
from .segmentation import (
    Sample,
    color_flag,
    paint,
    plot_segmentations,
    segment_samples,
)

__all__ = [
    'Sample',
    'color_flag',
    'convergence_figure',
    'paint',
    'plot_bars',
    'plot_budgets',
    'plot_convergence',
    'plot_evaluations',
    'plot_segmentations',
    'recorded_residuals',
    'residual_maps',
    'segment_samples',
]
