from .base import EquilibriumGradient
from .implicit import ImplicitGradient
from .phantom import PhantomGradient

__all__ = ['EquilibriumGradient', 'ImplicitGradient', 'PhantomGradient']
