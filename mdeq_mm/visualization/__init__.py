from .convergence import plot_convergence
from .segmentation import paint, plot_segmentations

__all__ = ['paint', 'plot_convergence', 'plot_segmentations']
