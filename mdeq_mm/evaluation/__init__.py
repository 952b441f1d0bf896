from .metrics import EquilibriumMetric, SolverStatistics, SpectralRadius

__all__ = ['EquilibriumMetric', 'SolverStatistics', 'SpectralRadius']
