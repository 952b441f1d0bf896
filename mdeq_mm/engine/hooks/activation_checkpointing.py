"""What mmengine's activation checkpointing cannot do with an equilibrium layer."""

from __future__ import annotations

from operator import attrgetter

from mmengine.runner import Runner
from torch import nn

from ...deq import equilibrium_layers
from .base import unwrapped


def check_activation_checkpointing(runner: Runner) -> None:
    """Looks at the modules that ``activation_checkpointing`` of the config names.

    mmengine uses the reentrant kind of torch. That records no gradient for tensors
    within a tuple. It also allows no vector-Jacobian products, of which the adjoint
    solve consists.

    Args:
        runner (Runner): The runner.

    Raises:
        ValueError: If one of the modules belongs to an equilibrium layer.
    """
    names = runner.cfg.get('activation_checkpointing') or []
    model = unwrapped(runner.model)
    for name in [names] if isinstance(names, str) else names:
        module: nn.Module = attrgetter(name)(model)
        for layer in equilibrium_layers(model):
            if any(module is part for part in layer.modules()):
                raise ValueError(
                    f'activation_checkpointing cannot be used for {name!r}, a part of '
                    'an equilibrium layer: its kind of checkpointing allows no adjoint '
                    'solve. Set with_cp=True in the backbone instead'
                )
            if any(layer is part for part in module.modules()):
                runner.logger.warning(
                    'activation_checkpointing of %r leaves it without gradients, as '
                    'that of any module whose inputs need none. Set with_cp=True in '
                    'the backbone instead',
                    name,
                )
