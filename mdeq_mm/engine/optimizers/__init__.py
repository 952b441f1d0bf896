from .equilibrium_optim_wrapper_constructor import EquilibriumOptimWrapperConstructor

__all__ = ['EquilibriumOptimWrapperConstructor']
