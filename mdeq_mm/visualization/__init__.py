"""Pictures: bars, budgets, convergence, evaluations, residuals, segmentations, solves.

A report joins those of one solve on a page.
"""

from .bars import plot_bars
from .budgets import plot_budgets
from .convergence import convergence_figure, draw_convergence, plot_convergence
from .evaluations import plot_evaluations
from .examination import Examination, Step, examine
from .pictures import (
    picture_adjoint,
    picture_features,
    picture_input,
    picture_residuals,
    picture_slow_places,
    principal_colours,
)
from .report import ReportCase, css_colour, write_report
from .residuals import (
    draw_residual_maps,
    recorded_residuals,
    residual_maps,
    residuals_by_place,
)
from .segmentation import (
    Sample,
    color_flag,
    paint,
    plot_segmentations,
    segment_samples,
)

__all__ = [
    'Examination',
    'ReportCase',
    'Sample',
    'Step',
    'color_flag',
    'convergence_figure',
    'css_colour',
    'draw_convergence',
    'draw_residual_maps',
    'examine',
    'paint',
    'picture_adjoint',
    'picture_features',
    'picture_input',
    'picture_residuals',
    'picture_slow_places',
    'plot_bars',
    'plot_budgets',
    'plot_convergence',
    'plot_evaluations',
    'plot_segmentations',
    'principal_colours',
    'recorded_residuals',
    'residual_maps',
    'residuals_by_place',
    'segment_samples',
    'write_report',
]
