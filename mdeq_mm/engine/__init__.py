from .hooks import (
    AtomicCheckpointHook,
    EquilibriumHook,
    EquilibriumVisualizationHook,
    ExtraLossHook,
    ImplicitGradientHook,
    InitialGuessLossHook,
    JacobianRegularizationHook,
    ModelCall,
    RandomStateHook,
    SpectralProjectionHook,
    StrictLoadingHook,
    TrajectorySupervisionHook,
)
from .optimizers import EquilibriumOptimWrapperConstructor
from .runner import (
    MultiTaskTestLoop,
    MultiTaskTrainLoop,
    MultiTaskValLoop,
    task_config,
)

__all__ = [
    'AtomicCheckpointHook',
    'EquilibriumHook',
    'EquilibriumOptimWrapperConstructor',
    'EquilibriumVisualizationHook',
    'ExtraLossHook',
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'ModelCall',
    'MultiTaskTestLoop',
    'MultiTaskTrainLoop',
    'MultiTaskValLoop',
    'RandomStateHook',
    'SpectralProjectionHook',
    'StrictLoadingHook',
    'TrajectorySupervisionHook',
    'task_config',
]
