from .implicit_gradient_hook import ImplicitGradientHook
from .jacobian_regularization_hook import JacobianRegularizationHook
from .random_state_hook import RandomStateHook
from .trajectory_supervision_hook import TrajectorySupervisionHook

__all__ = [
    'ImplicitGradientHook',
    'JacobianRegularizationHook',
    'RandomStateHook',
    'TrajectorySupervisionHook',
]
