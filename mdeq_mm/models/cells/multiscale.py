"""The multiscale cell of MDEQ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Optional

import torch
from mmcv.cnn import (
    ConvModule,
    build_activation_layer,
    build_conv_layer,
    build_norm_layer,
)
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from .blocks import (
    FreezableNorm,
    ResidualBlock,
    VariationalDropout,
    freezable_weight_norm,
)


class MultiscaleCell(nn.Module):
    """The function ``f(z; x)`` whose equilibrium MDEQ computes.

    A residual block per resolution, then every resolution receives the sum of all the
    others, brought to its size and channels, then a 1x1 convolution with GroupNorm
    (MDEQ paper, section 3.1). Branch ``i`` has stride ``2^i`` relative to branch 0; odd
    sizes round up. With one branch the cell is the residual block alone.

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
        with_cp (bool): Whether autograd saves the inputs of residual blocks and fusions
            alone, and every backward pass computes the rest again. Defaults to False.

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
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.with_cp = with_cp
        if num_blocks is None:
            num_blocks = (1,) * len(self.channels)
        if num_big_kernels is None:
            num_big_kernels = (0,) * len(self.channels)
        post_groups = max(num_groups // 2, 1)
        self._check(num_blocks, num_big_kernels, expansion, num_groups, post_groups)

        self.branches = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(
                    width, expansion, num_groups, n_big, dropout, conv_cfg, act_cfg
                )
                for _ in range(n_blocks)
            )
            for width, n_blocks, n_big in zip(
                self.channels, num_blocks, num_big_kernels
            )
        )
        if len(self.channels) == 1:
            return
        norm_cfg = dict(type='GN', num_groups=num_groups)
        self.fusion = nn.ModuleList(
            nn.ModuleList(
                self._path(source, target, conv_cfg, norm_cfg, act_cfg)
                for source in range(len(self.channels))
            )
            for target in range(len(self.channels))
        )
        post_norm_cfg = dict(type='GN', num_groups=post_groups, affine=post_norm_affine)
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

    def _check(
        self,
        num_blocks: Sequence[int],
        num_big_kernels: Sequence[int],
        expansion: int,
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
        if min(num_blocks) < 1:
            raise ValueError(f'num_blocks must be at least 1, got {tuple(num_blocks)}')
        if not set(num_big_kernels) <= {0, 1, 2}:
            raise ValueError(
                f'num_big_kernels must be 0, 1 or 2, got {tuple(num_big_kernels)}'
            )
        if expansion < 1 or num_groups < 1:
            raise ValueError(
                'expansion and num_groups must be at least 1, '
                f'got {expansion} and {num_groups}'
            )
        for width in self.channels:
            if width < 1 or width % num_groups or width % post_groups:
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
        """Makes what brings branch ``source`` to the channels of branch ``target``."""
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

    @contextmanager
    def freeze(self, injections: Sequence[Tensor]) -> Iterator[None]:
        """Keeps dropout masks and normalised weights fixed while the context lasts.

        Args:
            injections (Sequence[Tensor]): The injections of the solve, which give batch
                size, device and dtype of the masks.
        """
        x = injections[0]
        held: dict[nn.Module, Optional[Tensor]] = {}
        dtype = _autocast_dtype(x.device.type)
        for module in self.modules():
            if isinstance(module, VariationalDropout):
                held[module] = module.draw(len(x), x.device, x.dtype)
            elif parametrize.is_parametrized(module, 'weight'):
                # Here, not at the first use: that is in the solve, under no_grad, and
                # would cost the parameters their gradient. Autocast would cast it in
                # every evaluation.
                weight = module.weight
                if weight.dtype != torch.float64:  # which autocast leaves alone
                    weight = weight.to(dtype=dtype)
                held[module.parametrizations['weight'][0]] = weight
        with _Hold(held):
            yield

    def forward(
        self, states: Sequence[Tensor], injections: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Applies ``f`` once.

        Args:
            states (Sequence[Tensor]): State of each branch, ``(B, C_i, H_i, W_i)``.
            injections (Sequence[Tensor]): Injection of each branch, same shapes.

        Returns:
            tuple[Tensor]: Next state of each branch, same shapes.
        """
        outputs = []
        for blocks, z, injection in zip(self.branches, states, injections):
            z = self._run(blocks[0], z, injection)
            for block in blocks[1:]:
                z = self._run(block, z)
            outputs.append(z)
        if len(outputs) == 1:
            return tuple(outputs)
        return tuple(
            self._run(self._fuse, target, *outputs) for target in range(len(outputs))
        )

    def _run(self, function: Callable, *args: Any) -> Tensor:
        """Calls a part of the cell, which saves its inputs alone with ``with_cp``."""
        if not (self.with_cp and torch.is_grad_enabled()):
            return function(*args)
        kinds = (VariationalDropout, FreezableNorm)
        held = {m: m.held for m in self.modules() if isinstance(m, kinds)}
        return checkpoint(
            function,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            # Backward computes it again after the solve, when nothing is held any more.
            context_fn=lambda: (nullcontext(), _Hold(held)),
        )

    def _fuse(self, target: int, *outputs: Tensor) -> Tensor:
        size = outputs[target].shape[2:]
        fused = outputs[target]
        for source, (path, output) in enumerate(zip(self.fusion[target], outputs)):
            if source == target:
                continue
            term = path(output)
            if source > target:
                term = F.interpolate(term, size=size, mode='nearest')
            fused = fused + term
        return self.post_fusion[target](fused)


def _autocast_dtype(device: str) -> Optional[torch.dtype]:
    """Returns what autocast computes convolutions in, None where it is off."""
    if digit_version(torch.__version__) >= digit_version('2.4'):
        enabled = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if enabled else None
    if device == 'cpu':
        enabled, dtype = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    else:
        enabled, dtype = torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
    return dtype if enabled else None


class _Hold:
    """A context, for any number of times, in which modules hold the given tensors.

    Args:
        tensors (dict[nn.Module, Tensor]): What dropouts and weight normalisations hold.
    """

    def __init__(self, tensors: dict[nn.Module, Optional[Tensor]]) -> None:
        self.tensors = tensors

    def __enter__(self) -> None:
        self.before = {module: module.held for module in self.tensors}
        for module, tensor in self.tensors.items():
            module.held = tensor

    def __exit__(self, *args: Any) -> None:
        for module, tensor in self.before.items():
            module.held = tensor
