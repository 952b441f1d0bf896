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

__all__ = [
    'AtomicCheckpointHook',
    'EquilibriumHook',
    'ExtraLossHook',
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'ModelCall',
    'RandomStateHook',
    'StrictLoadingHook',
    'TrajectorySupervisionHook',
]
