from .implicit_gradient_hook import ImplicitGradientHook
from .random_state_hook import RandomStateHook

__all__ = ['ImplicitGradientHook', 'RandomStateHook']
