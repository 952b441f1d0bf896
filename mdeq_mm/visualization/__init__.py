from .bars import plot_bars
from .convergence import plot_convergence
from .segmentation import paint, plot_segmentations

__all__ = ['paint', 'plot_bars', 'plot_convergence', 'plot_segmentations']
