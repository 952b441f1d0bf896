from .hooks import ImplicitGradientHook, RandomStateHook

__all__ = ['ImplicitGradientHook', 'RandomStateHook']
