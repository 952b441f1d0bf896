from .hooks import (
    AtomicCheckpointHook,
    EquilibriumHook,
    ExtraLossHook,
    ImplicitGradientHook,
    InitialGuessLossHook,
    JacobianRegularizationHook,
    ModelCall,
    RandomStateHook,
    StrictLoadingHook,
    TrajectorySupervisionHook,
)
from .optimizers import EquilibriumOptimWrapperConstructor

__all__ = [
    'AtomicCheckpointHook',
    'EquilibriumHook',
    'EquilibriumOptimWrapperConstructor',
    'ExtraLossHook',
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'ModelCall',
    'RandomStateHook',
    'StrictLoadingHook',
    'TrajectorySupervisionHook',
]
