from .hooks import (
    ImplicitGradientHook,
    JacobianRegularizationHook,
    RandomStateHook,
    TrajectorySupervisionHook,
)

__all__ = [
    'ImplicitGradientHook',
    'JacobianRegularizationHook',
    'RandomStateHook',
    'TrajectorySupervisionHook',
]
