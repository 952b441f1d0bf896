from .atomic_checkpoint_hook import AtomicCheckpointHook
from .base import EquilibriumHook, ExtraLossHook, ModelCall
from .equilibrium_visualization_hook import EquilibriumVisualizationHook
from .implicit_gradient_hook import ImplicitGradientHook
from .initial_guess_loss_hook import InitialGuessLossHook
from .jacobian_regularization_hook import JacobianRegularizationHook
from .random_state_hook import RandomStateHook
from .spectral_projection_hook import SpectralProjectionHook
from .strict_loading_hook import StrictLoadingHook
from .trajectory_supervision_hook import TrajectorySupervisionHook

__all__ = [
    'AtomicCheckpointHook',
    'EquilibriumHook',
    'EquilibriumVisualizationHook',
    'ExtraLossHook',
    'ImplicitGradientHook',
    'InitialGuessLossHook',
    'JacobianRegularizationHook',
    'ModelCall',
    'RandomStateHook',
    'SpectralProjectionHook',
    'StrictLoadingHook',
    'TrajectorySupervisionHook',
]
