from .hooks import (
    EquilibriumHook,
    ExtraLossHook,
    ImplicitGradientHook,
    InitialGuessLossHook,
    JacobianRegularizationHook,
    ModelCall,
    RandomStateHook,
    TrajectorySupervisionHook,
)

__all__ = [
    'EquilibriumHook',
    'ExtraLossHook',
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'ModelCall',
    'RandomStateHook',
    'TrajectorySupervisionHook',
]
