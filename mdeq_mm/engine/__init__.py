from .hooks import (
    ImplicitGradientHook,
    InitialGuessLossHook,
    JacobianRegularizationHook,
    RandomStateHook,
    TrajectorySupervisionHook,
)

__all__ = [
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'RandomStateHook',
    'TrajectorySupervisionHook',
]
