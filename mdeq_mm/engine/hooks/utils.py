"""What several hooks look for in a model."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn

from ...deq import EquilibriumLayer


def equilibrium_layers(model: nn.Module) -> list[EquilibriumLayer]:
    """Returns the equilibrium layers of a model."""
    return [
        module for module in model.modules() if isinstance(module, EquilibriumLayer)
    ]


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns a model without the wrapper of several processes."""
    return model.module if is_model_wrapper(model) else model
