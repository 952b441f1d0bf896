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
    'ExtraLossHook',
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'ModelCall',
    'MultiTaskTestLoop',
    'MultiTaskTrainLoop',
    'MultiTaskValLoop',
    'RandomStateHook',
    'StrictLoadingHook',
    'TrajectorySupervisionHook',
    'task_config',
]
