from .base import EquilibriumGradient
from .implicit import ImplicitGradient
from .phantom import PhantomGradient
from .unrolled import UnrolledGradient

__all__ = [
    'EquilibriumGradient',
    'ImplicitGradient',
    'PhantomGradient',
    'UnrolledGradient',
]
