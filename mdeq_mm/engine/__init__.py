from .hooks import ImplicitGradientHook, JacobianRegularizationHook, RandomStateHook

__all__ = ['ImplicitGradientHook', 'JacobianRegularizationHook', 'RandomStateHook']
