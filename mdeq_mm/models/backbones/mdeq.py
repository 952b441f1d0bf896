"""Multiscale deep equilibrium backbone.

Bai, Koltun, Kolter, "Multiscale Deep Equilibrium Models", NeurIPS 2020,
https://arxiv.org/abs/2006.08656.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional, Union

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ...deq import EquilibriumGradient, EquilibriumLayer, FixedPointSolver, InitialGuess
from ..cells import MultiscaleCell
from ..initial_guesses import ProjectedGuess


@MODELS.register_module()
class MDEQ(BaseModule):
    """Multiscale deep equilibrium model (MDEQ) as a backbone.

    A stem, an injection into the finest resolution, and the joint equilibrium of all
    resolutions: ``arch='small'`` gives strides 4, 8, 16 and 32, like HRNet. Gradients
    are implicit, so that training memory does not depend on the number of evaluations.

    Any image size works whose height and width are more than half the coarsest stride;
    odd sizes round up, as with strided convolutions.

    Args:
        arch (str or dict): Name of an architecture, ``'tiny'`` and ``'cifar-large'``
            for images of CIFAR's size, ``'small'``, ``'large'`` and ``'xl'`` for larger
            ones; or a dict with the keys

            - ``channels`` (Sequence[int]): channels of each branch, finest first;
            - ``num_blocks`` (Sequence[int]): residual blocks of each branch, default 1;
            - ``num_big_kernels`` (Sequence[int]): convolutions of a residual block that
              are 5x5, for each branch, default 0;
            - ``expansion`` (int): of the residual blocks, default 5;
            - ``num_groups`` (int): of GroupNorm, default 8;
            - ``post_norm_affine`` (bool): affine parameters in the norm after the
              fusion, default True;
            - ``downsample_times`` (int): halvings in the stem, default 2.

            Defaults to ``'small'``.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Branches that are returned, 0 is the
            finest. Defaults to None, all of them.
        forward_solver (FixedPointSolver or dict): Solver of the equilibrium.
            Defaults to ``dict(type='BroydenSolver', max_evals=26, tol=1e-3)``.
        gradient (EquilibriumGradient or dict): How to differentiate the equilibrium.
            Defaults to ``dict(type='ImplicitGradient', solver=dict(
            type='BroydenSolver', max_evals=27, tol=1e-3, history_dtype='bfloat16'))``:
            in backward the history lies next to the activations.
        initial_guess (InitialGuess or dict): Where the solve starts: ``ZeroGuess``;
            ``PreviousGuess``, for video; or ``ProjectedGuess``, which is learned.
            Defaults to ``dict(type='ZeroGuess')``.
        num_layers (int): Applications of the cell in the shallow mode, see
            :class:`ImplicitGradientHook`. Defaults to 5.
        dropout (float): Probability of the variational dropout in the cell.
            Defaults to 0.0.
        frozen_stages (int): 0 freezes stem and injection, 1 the cell as well, -1
            nothing. Frozen batch norms use their running statistics. Defaults to -1.
        norm_eval (bool): Whether batch norms stay in evaluation mode while training.
            Defaults to False.
        conv_cfg (dict, optional): Config of the convolutions. Defaults to None
            (``Conv2d``).
        norm_cfg (dict): Config of the norms of stem and injection (those of the cell
            are GroupNorm). Defaults to ``dict(type='BN', requires_grad=True)``.
        act_cfg (dict): Config of the activations. Defaults to ``dict(type='ReLU')``.
        with_cp (bool): Whether autograd saves the inputs of the cell's residual blocks
            and fusions alone. Each vector-Jacobian product of the adjoint solve then
            computes the rest again, at the price of about one evaluation.
            Defaults to False.
        compile_cell (dict, optional): Arguments of ``torch.compile``, ``dict()`` for
            its defaults, with which the cell is compiled for the forward solve.
            Evaluations that autograd records are not compiled. Needs torch 2.5.
            Defaults to None, not compiled.
        deploy (bool): Whether weight normalisation is folded into plain weights, see
            :meth:`switch_to_deploy`; takes checkpoints saved after it.
            Defaults to False.
        init_cfg (dict or list[dict], optional): Initialization config. Defaults to
            None, the paper's: normal with standard deviation 0.01 for every convolution
            that is not weight-normalised.

    Raises:
        TypeError: If ``arch``, a solver or a gradient has unknown or missing keys.
        ValueError: If an argument is out of its range.

    Examples:
        >>> import torch
        >>> from mdeq_mm.models import MDEQ
        >>> model = MDEQ(arch='small').eval()
        >>> with torch.no_grad():
        ...     outputs = model(torch.rand(1, 3, 64, 96))
        >>> [tuple(output.shape) for output in outputs]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    arch_settings = {
        'tiny': dict(channels=(24, 24), post_norm_affine=False, downsample_times=0),
        'cifar-large': dict(
            channels=(32, 64, 128, 256), post_norm_affine=False, downsample_times=0
        ),
        'small': dict(channels=(32, 64, 128, 256)),
        'large': dict(channels=(80, 160, 320, 640)),
        'xl': dict(channels=(88, 176, 352, 704), expansion=6),
    }
    arch_defaults = dict(
        num_blocks=None,
        num_big_kernels=None,
        expansion=5,
        num_groups=8,
        post_norm_affine=True,
        downsample_times=2,
    )
    paper_init_cfg = [
        dict(type='Normal', layer='Conv2d', std=0.01),
        dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
    ]

    def __init__(
        self,
        arch: Union[str, dict] = 'small',
        in_channels: int = 3,
        out_indices: Optional[Sequence[int]] = None,
        forward_solver: Union[FixedPointSolver, dict] = dict(
            type='BroydenSolver', max_evals=26, tol=1e-3
        ),
        gradient: Union[EquilibriumGradient, dict] = dict(
            type='ImplicitGradient',
            solver=dict(
                type='BroydenSolver', max_evals=27, tol=1e-3, history_dtype='bfloat16'
            ),
        ),
        initial_guess: Union[InitialGuess, dict] = dict(type='ZeroGuess'),
        num_layers: int = 5,
        dropout: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        conv_cfg: Optional[dict] = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        act_cfg: dict = dict(type='ReLU'),
        with_cp: bool = False,
        compile_cell: Optional[dict] = None,
        deploy: bool = False,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(self.paper_init_cfg if init_cfg is None else init_cfg)
        arch = self._arch(arch)
        channels = tuple(arch['channels'])
        downsample_times = arch.pop('downsample_times')
        if downsample_times < 0:
            raise ValueError(
                f'downsample_times must not be negative, got {downsample_times}'
            )
        if frozen_stages not in (-1, 0, 1):
            raise ValueError(f'frozen_stages must be -1, 0 or 1, got {frozen_stages!r}')
        cell = MultiscaleCell(
            **arch,
            dropout=dropout,
            conv_cfg=conv_cfg,
            act_cfg=act_cfg,
            with_cp=with_cp,
        )
        self.in_channels = in_channels
        self.channels = channels
        self.coarsest_stride = 2 ** (downsample_times + len(channels) - 1)
        self.out_indices = self._out_indices(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        strides = [2] * downsample_times + [1] * max(2 - downsample_times, 0)
        conv_kwargs = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        # Plain containers: mmengine would descend into its own and let every ConvModule
        # initialise itself again, after init_cfg.
        self.stem = nn.Sequential(
            *(
                ConvModule(
                    in_channels if level == 0 else channels[0],
                    channels[0],
                    3,
                    stride=stride,
                    padding=1,
                    **conv_kwargs,
                )
                for level, stride in enumerate(strides)
            )
        )
        self.injection = nn.Sequential()
        if downsample_times > 0 or len(channels) > 2:
            self.injection.append(
                ConvModule(channels[0], channels[0], 1, **conv_kwargs)
            )
        if isinstance(initial_guess, dict) and (
            initial_guess.get('type') in ('ProjectedGuess', ProjectedGuess)
        ):
            initial_guess = dict(channels=channels, **initial_guess)
        self.equilibrium = EquilibriumLayer(
            cell, forward_solver, gradient, num_layers, initial_guess, compile_cell
        )
        self._replayed: Optional[Sequence[Tensor]] = None
        self._freeze_stages()
        if deploy:
            self.switch_to_deploy()

    def _arch(self, arch: Union[str, dict]) -> dict:
        if isinstance(arch, str):
            if arch not in self.arch_settings:
                raise ValueError(
                    f'arch must be one of {", ".join(self.arch_settings)}, or a dict, '
                    f'got {arch!r}'
                )
            arch = self.arch_settings[arch]
        allowed = {'channels', *self.arch_defaults}
        if not isinstance(arch, dict) or not {'channels'} <= set(arch) <= allowed:
            raise TypeError(
                "arch must be a name or a dict with the key 'channels' and, if wanted, "
                f'{", ".join(self.arch_defaults)}, got {arch!r}'
            )
        return {**self.arch_defaults, **arch}

    def _out_indices(self, out_indices: Optional[Sequence[int]]) -> tuple[int, ...]:
        branches = range(len(self.channels))
        if out_indices is None:
            return tuple(branches)
        if not set(out_indices) <= set(branches) or not len(out_indices):
            raise ValueError(
                f'out_indices must be branches of 0 to {len(self.channels) - 1}, '
                f'got {out_indices!r}'
            )
        return tuple(out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the equilibrium of an image batch.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: The branches in ``out_indices``, ``(B, C_i, H_i, W_i)``, in
            float32 (float64 for images in float64).

        Raises:
            ValueError: If ``x`` has another shape or is too small.
        """
        if self._replayed is not None:
            return tuple(self._replayed[index] for index in self.out_indices)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'MDEQ takes images of shape (B, {self.in_channels}, H, W), '
                f'got {tuple(x.shape)}'
            )
        smallest = self.coarsest_stride // 2 + 1
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f'an image of {x.shape[2]}x{x.shape[3]} is too small: the coarsest of '
                f'{len(self.channels)} branches has stride {self.coarsest_stride}, '
                f'which takes height and width of at least {smallest}'
            )
        finest = self.injection(self.stem(x))
        height, width = finest.shape[2:]
        injections = [finest]
        for channels in self.channels[1:]:
            height, width = (height + 1) // 2, (width + 1) // 2
            # The coarser branches get no injection; an expanded zero takes no memory.
            zero = finest.new_zeros(())
            injections.append(zero.expand(len(x), channels, height, width))
        features, _ = self.equilibrium(injections)
        return tuple(features[index] for index in self.out_indices)

    @contextmanager
    def replay(self, features: Sequence[Tensor]) -> Iterator[None]:
        """Lets the backbone return given features while the context lasts.

        What stands behind the backbone can so be applied to other states than the
        equilibrium, as :class:`TrajectorySupervisionHook` does.

        Args:
            features (Sequence[Tensor]): One map a branch, ``(B, C_i, H_i, W_i)``.
        """
        self._replayed = features
        try:
            yield
        finally:
            self._replayed = None

    def switch_to_deploy(self) -> None:
        """Folds weight normalisation into plain weights, for inference.

        The outputs stay the same; the normalised weights need no computation in each
        forward pass any more. A second call does nothing.
        """
        for module in self.equilibrium.cell.modules():
            if parametrize.is_parametrized(module, 'weight'):
                # torch deletes the property from the class, which deep copies of the
                # model share, so the module gets one of its own first.
                cls = type(module)
                module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
                parametrize.remove_parametrizations(module, 'weight')

    def _freeze_stages(self) -> None:
        stages = ([self.stem, self.injection], [self.equilibrium])
        for modules in stages[: self.frozen_stages + 1]:
            for module in modules:
                module.eval()
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> MDEQ:
        """Switches the mode; frozen stages, and norms with ``norm_eval``, stay."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
