"""The multiscale cell of MDEQ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Callable, Optional, cast

import torch
from mmcv.cnn import (
    ConvModule,
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
)
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...deq import Cell, current_frozen, freezable_weight_norm
from ...deq.checks import check_choice, check_int, check_number
from .blocks import ResidualBlock


@MODELS.register_module()
class MultiscaleCell(Cell):
    """The function ``f(z; x)`` whose equilibrium MDEQ computes.

    Each branch, that is each resolution, first goes through residual blocks. Then it
    receives the sum of all other branches, brought to its size and channels. A 1x1
    convolution with GroupNorm ends the cell (MDEQ paper, section 3.1). Branch ``i`` has
    stride ``2^i`` relative to branch 0; odd sizes round up. With one branch the cell is
    its residual blocks alone.

    Args:
        channels (Sequence[int]): Channels of each branch, finest first.
        num_blocks (Sequence[int], optional): Residual blocks of each branch; only the
            first of a branch takes the injection. Defaults to None, one each.
        num_big_kernels (Sequence[int], optional): How many convolutions (0, 1 or 2) of
            a residual block are 5x5, for each branch. Defaults to None, zero each.
        expansion (int): Expansion of the residual blocks. Defaults to 5.
        num_groups (int): Groups of GroupNorm; the norm after the fusion has half as
            many. Defaults to 8.
        post_norm_affine (bool): Whether the norm after the fusion has affine
            parameters. Defaults to True.
        dropout (float): Probability of the variational dropout. Defaults to 0.0.
        conv_cfg (dict, optional): Config of the convolutions. Defaults to None
            (``Conv2d``).
        act_cfg (dict): Config of the activation. Defaults to ``dict(type='ReLU')``.
        norm_type (str): ``'GN'``, which has no Lipschitz constant, or
            ``'MeanOnlyGroupNorm'``, of which it is at most the largest absolute gain.
            Defaults to ``'GN'``.
        residual_weight (float, optional): Weight in (0, 1] of the residual function of
            a block, if it is averaged with its input instead of added to it. If the
            function has the Lipschitz constant ``L``, the sum has ``1 + L``, and the
            mean has ``1 - weight + weight * L``. Defaults to None, the sum.
        fusion_weight (float, optional): Weight in (0, 1] of all other branches
            together, if a branch is averaged with them instead of added to them. Each
            level that another branch is coarser divides its share by ``e``. If their
            mean has the Lipschitz constant ``L``, the result has
            ``1 - weight + weight * L``. Defaults to None, the sum.
        with_cp (bool): Whether autograd saves only the inputs of residual blocks and
            fusions. Every backward pass then computes the rest again.
            Defaults to False.

    Raises:
        ValueError: If the lists differ in length, or an argument is out of its range.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_blocks: Optional[Sequence[int]] = None,
        num_big_kernels: Optional[Sequence[int]] = None,
        expansion: int = 5,
        num_groups: int = 8,
        post_norm_affine: bool = True,
        dropout: float = 0.0,
        conv_cfg: Optional[dict] = None,
        act_cfg: dict = dict(type='ReLU'),
        norm_type: str = 'GN',
        residual_weight: Optional[float] = None,
        fusion_weight: Optional[float] = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        check_int('expansion', expansion, 1)
        check_int('num_groups', num_groups, 1)
        check_number('dropout', dropout, least=0, below=1)
        check_choice('norm_type', norm_type, ('GN', 'MeanOnlyGroupNorm'))
        check_number('residual_weight', residual_weight, above=0, most=1, optional=True)
        check_number('fusion_weight', fusion_weight, above=0, most=1, optional=True)
        self.channels = tuple(channels)
        self.with_cp = with_cp
        if num_blocks is None:
            num_blocks = (1,) * len(self.channels)
        if num_big_kernels is None:
            num_big_kernels = (0,) * len(self.channels)
        post_groups = max(num_groups // 2, 1)
        self._check_branches(num_blocks, num_big_kernels, num_groups, post_groups)

        self.branches = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(
                    width,
                    expansion,
                    num_groups,
                    n_big,
                    dropout,
                    conv_cfg,
                    act_cfg,
                    norm_type,
                    residual_weight,
                )
                for _ in range(n_blocks)
            )
            for width, n_blocks, n_big in zip(
                self.channels, num_blocks, num_big_kernels
            )
        )
        if len(self.channels) == 1:
            return
        norm_cfg = dict(type=norm_type, num_groups=num_groups)
        self.fusion = nn.ModuleList(
            nn.ModuleList(
                self._path(source, target, conv_cfg, norm_cfg, act_cfg)
                for source in range(len(self.channels))
            )
            for target in range(len(self.channels))
        )
        self.fusion_weights = [
            _fusion_weights(target, len(self.channels), fusion_weight)
            for target in range(len(self.channels))
        ]
        post_norm_cfg = dict(
            type=norm_type, num_groups=post_groups, affine=post_norm_affine
        )
        self.post_fusion = nn.ModuleList(
            nn.Sequential(
                build_activation_layer(act_cfg),
                freezable_weight_norm(
                    build_conv_layer(conv_cfg, width, width, 1, bias=False)
                ),
                build_norm_layer(post_norm_cfg, width)[1],
            )
            for width in self.channels
        )

    def _check_branches(
        self,
        num_blocks: Sequence[int],
        num_big_kernels: Sequence[int],
        num_groups: int,
        post_groups: int,
    ) -> None:
        if not self.channels:
            raise ValueError('channels must name at least one branch, got none')
        for name, values in (
            ('num_blocks', num_blocks),
            ('num_big_kernels', num_big_kernels),
        ):
            if len(values) != len(self.channels):
                raise ValueError(
                    f'{name} must have one entry for each of the {len(self.channels)} '
                    f'branches of channels={self.channels}, got {tuple(values)}'
                )
        for value in num_blocks:
            check_int('num_blocks of a branch', value, 1)
        for value in num_big_kernels:
            check_choice('num_big_kernels of a branch', value, (0, 1, 2))
        for width in self.channels:
            check_int('channels of a branch', width, 1)
            if width % num_groups or width % post_groups:
                raise ValueError(
                    f'channels must be divisible by num_groups={num_groups} (and by '
                    f'{post_groups}, the groups after the fusion), got {self.channels}'
                )

    def _path(
        self,
        source: int,
        target: int,
        conv_cfg: Optional[dict],
        norm_cfg: dict,
        act_cfg: dict,
    ) -> nn.Module:
        """Makes the path from branch ``source`` to the channels of branch ``target``.

        A path to a coarser branch halves the size at each step, too. A path to a finer
        branch leaves the size to :meth:`_fuse`.
        """
        if source == target:
            return nn.Identity()
        if source > target:
            return ConvModule(
                self.channels[source],
                self.channels[target],
                1,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
                act_cfg=None,
            )
        return nn.Sequential(
            *(
                ConvModule(
                    self.channels[source],
                    self.channels[target if level == target else source],
                    3,
                    stride=2,
                    padding=1,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg,
                    act_cfg=None if level == target else act_cfg,
                )
                for level in range(source + 1, target + 1)
            )
        )

    def forward(
        self, states: Sequence[Tensor], injections: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Evaluates ``f`` once.

        Args:
            states (Sequence[Tensor]): State of each branch, ``(B, C_i, H_i, W_i)``.
            injections (Sequence[Tensor]): Injection of each branch, of its shape.

        Returns:
            tuple[Tensor]: Next state of each branch, of the same shapes.
        """
        outputs = []
        for blocks, z, injection in zip(self.branches, states, injections):
            first, *rest = cast(nn.ModuleList, blocks)
            output = self._run(first, z, injection)
            for block in rest:
                output = self._run(block, output)
            outputs.append(output)
        if len(outputs) == 1:
            return tuple(outputs)
        return tuple(
            self._run(self._fuse, target, *outputs) for target in range(len(outputs))
        )

    def _run(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Calls a part of the cell; with ``with_cp`` autograd saves its inputs alone.

        Backward calls the part again after the solve, perhaps in another thread. There
        the cell must be frozen as it is now, with the same masks and weights.
        """
        if not (self.with_cp and torch.is_grad_enabled()):
            return function(*args)
        frozen = current_frozen() or nullcontext()
        return checkpoint(
            function,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), frozen),
        )

    def _fuse(self, target: int, *outputs: Tensor) -> Tensor:
        """Adds what all branches send to one, and ends that branch."""
        weights = self.fusion_weights[target]
        fused = outputs[target]
        if weights[target] != 1:
            fused = weights[target] * fused
        size = fused.shape[2:]
        paths = cast(nn.ModuleList, self.fusion[target])
        for source, (path, output) in enumerate(zip(paths, outputs)):
            if source == target:
                continue
            term = path(output)
            if source > target:
                # The target's size and not a factor: odd sizes round up.
                term = F.interpolate(term, size=size, mode='nearest')
            fused = torch.add(fused, term, alpha=weights[source])
        return self.post_fusion[target](fused)


def _fusion_weights(target: int, n: int, weight: Optional[float]) -> list[float]:
    """Returns what each of ``n`` branches weighs in the fusion of branch ``target``."""
    if weight is None:
        return [1.0] * n
    shares = [math.exp(min(target - source, 0)) for source in range(n)]
    shares[target] = 0.0
    total = sum(shares)
    weights = [weight * share / total for share in shares]
    weights[target] = 1 - weight
    return weights
