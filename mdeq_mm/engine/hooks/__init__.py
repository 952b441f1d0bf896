from .base import EquilibriumHook, ExtraLossHook, ModelCall
from .implicit_gradient_hook import ImplicitGradientHook
from .initial_guess_loss_hook import InitialGuessLossHook
from .jacobian_regularization_hook import JacobianRegularizationHook
from .random_state_hook import RandomStateHook
from .trajectory_supervision_hook import TrajectorySupervisionHook

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
