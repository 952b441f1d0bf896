"""What the backbones that return an equilibrium have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, Optional, Union

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...deq import (
    Cell,
    EquilibriumGradient,
    EquilibriumLayer,
    FixedPointSolver,
    InitialGuess,
)
from ...deq.builder import build
from ...deq.checks import check_choice, check_int
from ...deq.parts import assignable_weights, fold_parametrizations


class EquilibriumBackbone(BaseModule, ABC):
    """Base of the backbones that return an equilibrium.

    A subclass makes whatever computes the injections of an image, then calls
    :meth:`add_equilibrium` with its cell, and last :meth:`finish`.

    Args:
        in_channels (int): Channels of the image.
        frozen_stages (int): 0 freezes all layers but the equilibrium, 1 the equilibrium
            as well, -1 nothing.
        norm_eval (bool): Whether batch norms stay in evaluation mode while training.
        init_cfg (dict or list[dict], optional): Initialization config. None is
            ``default_init_cfg``.

    Attributes:
        equilibrium (EquilibriumLayer): The layer.
        outputs (ModuleList): An identity per feature map of the equilibrium.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # What a subclass is initialised by unless told otherwise.
    default_init_cfg: list[dict[str, Any]] = []
    # Names of modules and parameters by layer, from the image on; the equilibrium is
    # the last one.
    layers: tuple[tuple[str, ...], ...] = (('equilibrium',),)

    def __init__(
        self,
        in_channels: int,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: Optional[Union[dict, list]],
    ) -> None:
        super().__init__(self.default_init_cfg if init_cfg is None else init_cfg)
        check_int('in_channels', in_channels, 1)
        check_choice('frozen_stages', frozen_stages, (-1, 0, 1))
        self._inits_by_default = init_cfg is None
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    def add_equilibrium(
        self,
        cell: Cell,
        forward_solver: Union[FixedPointSolver, dict],
        gradient: Union[EquilibriumGradient, dict],
        num_layers: int,
        initial_guess: Union[InitialGuess, dict],
        compile_cell: Optional[dict],
        evaluation_dtype: Optional[str],
    ) -> None:
        """Makes the equilibrium layer, and an identity for each of its feature maps.

        Args:
            cell (Cell): ``f``, with an attribute ``channels``, one number per feature
                map.
            forward_solver (FixedPointSolver or dict): Solver of the equilibrium.
            gradient (EquilibriumGradient or dict): How to differentiate it.
            num_layers (int): Applications of the cell where it is unrolled.
            initial_guess (InitialGuess or dict): Where the solve starts. If its class
                takes ``channels``, it gets those of the cell.
            compile_cell (dict, optional): Arguments of ``torch.compile``; None does not
                compile.
            evaluation_dtype (str, optional): See :class:`EquilibriumLayer`.
        """
        channels: Any = cell.channels
        guess = build(
            initial_guess,
            InitialGuess,
            'initial_guess',
            defaults=dict(channels=channels),
        )
        self.equilibrium = EquilibriumLayer(
            cell,
            forward_solver,
            gradient,
            num_layers,
            guess,
            compile_cell,
            evaluation_dtype,
        )
        # Each has a name for whoever observes or explains one feature map. The layer
        # returns a tuple, and modules within the cell are called many times per image.
        self.outputs = nn.ModuleList(nn.Identity() for _ in channels)

    def finish(self, deploy: bool) -> None:
        """Ends the construction, when all layers are made.

        Args:
            deploy (bool): Whether to call :meth:`switch_to_deploy`.
        """
        self._freeze_stages()
        if deploy:
            self.switch_to_deploy()

    @abstractmethod
    def select(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns what the backbone returns, given the maps of the equilibrium.

        Args:
            features (Sequence[Tensor]): One map per branch, ``(B, C_i, H_i, W_i)``.
        """

    def solve(self, injections: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Finds the equilibrium, shows its maps to ``outputs`` and selects.

        Args:
            injections (Sequence[Tensor]): One per branch, ``(B, C_i, H_i, W_i)``.
        """
        features = self.equilibrium(injections).features
        return self.select([out(x) for out, x in zip(self.outputs, features)])

    def check_images(self, x: Tensor) -> None:
        """Checks the shape of a batch of images.

        Raises:
            ValueError: If it is not ``(B, in_channels, H, W)``.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} takes images of shape '
                f'(B, {self.in_channels}, H, W), got {tuple(x.shape)}'
            )

    def init_weights(self) -> None:
        """Initialises the weights as ``init_cfg`` says.

        The default leaves normalised weights as they were drawn. Those that another one
        changes are assigned at the end, after mmengine has logged them.
        """
        with nullcontext() if self._inits_by_default else assignable_weights(self):
            super().init_weights()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns how deep a parameter lies, for layer-wise learning rates.

        The equilibrium is one layer, the last one, because all its evaluations share
        their weights.

        Args:
            param_name (str): Name of the parameter in the model.
            prefix (str): What the names of parameters of the backbone begin with.
                Defaults to ``''``.

        Returns:
            tuple[int, int]: The layer, and the number of layers. What follows the
            backbone is the last one.
        """
        for depth, names in enumerate(self.layers):
            if any(f'{param_name}.'.startswith(f'{prefix}{name}.') for name in names):
                return depth, len(self.layers) + 1
        return len(self.layers), len(self.layers) + 1

    def switch_to_deploy(self) -> None:
        """Folds weight normalisation into plain weights, for inference.

        So are other parametrizations of the cell. The outputs stay the same, and no
        forward pass computes the weights any more. A second call does nothing.
        """
        fold_parametrizations(self.equilibrium.cell)

    def _freeze_stages(self) -> None:
        *before, last = self.layers
        stages = (list(chain(*before)), last)
        for name in chain(*stages[: self.frozen_stages + 1]):
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                part.eval()
            if part is not None:
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> EquilibriumBackbone:
        """Switches the mode; frozen stages, and norms with ``norm_eval``, stay."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
