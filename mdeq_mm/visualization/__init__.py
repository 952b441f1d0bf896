"""Pictures: bars of measured ratios, convergence, segmentations."""

from .bars import plot_bars
from .convergence import plot_convergence
from .segmentation import paint, plot_segmentations, segment_samples

__all__ = [
    'paint',
    'plot_bars',
    'plot_convergence',
    'plot_segmentations',
    'segment_samples',
]
