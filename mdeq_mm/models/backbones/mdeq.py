"""Multiscale deep equilibrium backbone.

Bai, Koltun, Kolter, "Multiscale Deep Equilibrium Models", NeurIPS 2020,
https://arxiv.org/abs/2006.08656.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

from mmengine.registry import MODELS
from torch import Tensor

from ...deq import Cell, EquilibriumGradient, FixedPointSolver, InitialGuess
from ...deq.checks import check_int
from .architecture import make_cell
from .base import EquilibriumBackbone
from .stem import make_injection, make_stem


@MODELS.register_module()
class MDEQ(EquilibriumBackbone):
    """Multiscale deep equilibrium model (MDEQ) as a backbone.

    A stem and an injection compute the finest feature map of the image. The backbone
    returns the joint equilibrium of all resolutions: ``arch='small'`` gives strides 4,
    8, 16 and 32, like HRNet. Gradients are implicit, so that training memory does not
    depend on the number of evaluations.

    ``outputs[i]`` is an identity that each pass gives the feature map of branch ``i``,
    once: the module to name where a tool, such as one for class activation maps, asks
    for a layer.

    Any image size works whose height and width are more than half the coarsest stride;
    odd sizes round up, as with strided convolutions.

    Args:
        arch (str or dict, optional): Shorthand for ``cell`` and ``downsample_times``:
            ``'tiny'`` or ``'cifar-large'`` for images of CIFAR's size, ``'small'``,
            ``'large'`` or ``'xl'`` for larger ones; or a dict of ``channels`` and, if
            wanted, other arguments of :class:`MultiscaleCell` and ``downsample_times``.
            Defaults to None, which is ``'small'`` unless ``cell`` is given.
        cell (Cell or dict, optional): The function whose equilibrium is sought, or its
            config in mmengine's ``MODELS``. Its attribute ``channels`` gives the
            channels of each branch; branch ``i`` has stride ``2^i`` relative to branch
            0. Defaults to None, the :class:`MultiscaleCell` that ``arch`` describes.
        downsample_times (int, optional): Halvings in the stem. Defaults to None: what
            ``arch`` says, and 2 if it says nothing.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int], optional): Branches that are returned, 0 is the
            finest. Defaults to None, all of them.
        forward_solver (FixedPointSolver or dict): Solver of the equilibrium.
            Defaults to ``dict(type='BroydenSolver', max_evals=26, tol=1e-3,
            returns='evaluation')``.
        gradient (EquilibriumGradient or dict): How to differentiate the equilibrium.
            Defaults to ``dict(type='ImplicitGradient', solver=dict(
            type='BroydenSolver', max_evals=27, tol=1e-3, history_dtype='bfloat16'))``:
            in backward the history takes memory next to the activations.
        initial_guess (InitialGuess or dict): Where the solve starts: ``ZeroGuess``;
            ``PreviousGuess``, for video; or ``ProjectedGuess``, which is learned.
            Defaults to ``dict(type='ZeroGuess')``.
        num_layers (int): Evaluations of the cell where it is unrolled instead of
            solved, see :class:`ImplicitGradientHook`. Defaults to 5.
        dropout (float, optional): Probability of the variational dropout in the cell
            that ``arch`` describes. Defaults to None, that of the cell.
        frozen_stages (int): 0 freezes stem and injection, 1 the equilibrium as well, -1
            nothing. Frozen batch norms use their running statistics. Defaults to -1.
        norm_eval (bool): Whether batch norms stay in evaluation mode while training.
            Defaults to False.
        conv_cfg (dict, optional): Config of the convolutions of stem, injection and
            that cell. Defaults to None (``Conv2d``).
        norm_cfg (dict): Config of the norms of stem and injection. Defaults to
            ``dict(type='BN', requires_grad=True)``.
        act_cfg (dict): Config of their activations. Defaults to ``dict(type='ReLU')``.
        with_cp (bool, optional): Whether autograd saves only the inputs of the parts of
            that cell. Each vector-Jacobian product then computes the rest again, at the
            price of about one evaluation. Defaults to None, that of the cell.
        compile_cell (dict, optional): Arguments of ``torch.compile``, ``dict()`` for
            its defaults, with which the cell is compiled for the forward solve.
            Evaluations that autograd records are not compiled. Needs torch 2.5.
            Defaults to None, not compiled.
        evaluation_dtype (str, optional): ``'bfloat16'`` begins the solves in bfloat16
            and ends them in float32, without autocast of the model; see
            :class:`EquilibriumLayer`. It is faster where the processor multiplies in
            bfloat16. Defaults to None, all in float32.
        deploy (bool): Whether weight normalisation is folded into plain weights, see
            :meth:`switch_to_deploy`. Such a model loads the checkpoints that were saved
            after it. Defaults to False.
        init_cfg (dict or list[dict], optional): Initialization config. Defaults to
            None, that of the paper: normal with standard deviation 0.01 for every
            convolution that is not weight-normalised.

    Raises:
        TypeError: If ``arch`` or a config has unknown or missing keys.
        ValueError: If an argument is out of its range or excludes another one.

    Examples:
        >>> import torch
        >>> from mdeq_mm.models import MDEQ
        >>> model = MDEQ(arch='small').eval()
        >>> with torch.no_grad():
        ...     outputs = model(torch.rand(1, 3, 64, 96))
        >>> [tuple(output.shape) for output in outputs]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    # Each architecture as far as it differs from the defaults of MultiscaleCell, and
    # from a stem that halves twice.
    arch_settings: dict[str, dict[str, Any]] = {
        'tiny': dict(channels=(24, 24), post_norm_affine=False, downsample_times=0),
        'cifar-large': dict(
            channels=(32, 64, 128, 256), post_norm_affine=False, downsample_times=0
        ),
        'small': dict(channels=(32, 64, 128, 256)),
        'large': dict(channels=(80, 160, 320, 640)),
        'xl': dict(channels=(88, 176, 352, 704), expansion=6),
    }
    default_downsample_times = 2
    default_init_cfg = [
        dict(type='Normal', layer='Conv2d', std=0.01),
        dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
    ]
    layers = (('stem',), ('injection',), ('equilibrium',))

    def __init__(
        self,
        arch: Optional[Union[str, dict]] = None,
        cell: Optional[Union[Cell, dict]] = None,
        downsample_times: Optional[int] = None,
        in_channels: int = 3,
        out_indices: Optional[Sequence[int]] = None,
        forward_solver: Union[FixedPointSolver, dict] = dict(
            type='BroydenSolver', max_evals=26, tol=1e-3, returns='evaluation'
        ),
        gradient: Union[EquilibriumGradient, dict] = dict(
            type='ImplicitGradient',
            solver=dict(
                type='BroydenSolver', max_evals=27, tol=1e-3, history_dtype='bfloat16'
            ),
        ),
        initial_guess: Union[InitialGuess, dict] = dict(type='ZeroGuess'),
        num_layers: int = 5,
        dropout: Optional[float] = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        conv_cfg: Optional[dict] = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        act_cfg: dict = dict(type='ReLU'),
        with_cp: Optional[bool] = None,
        compile_cell: Optional[dict] = None,
        evaluation_dtype: Optional[str] = None,
        deploy: bool = False,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        cfgs = dict(conv_cfg=conv_cfg, act_cfg=act_cfg)
        options = dict(dropout=dropout, with_cp=with_cp)
        function, times = make_cell(self.arch_settings, arch, cell, options, cfgs)
        if downsample_times is None:
            downsample_times = self.default_downsample_times if times is None else times
        check_int('downsample_times', downsample_times, 0)
        super().__init__(in_channels, frozen_stages, norm_eval, init_cfg)
        self.channels: tuple[int, ...] = tuple(function.channels)
        self.coarsest_stride = 2 ** (downsample_times + len(self.channels) - 1)
        branches = range(len(self.channels))
        self.out_indices = tuple(branches if out_indices is None else out_indices)
        if not self.out_indices or not set(self.out_indices) <= set(branches):
            raise ValueError(
                f'out_indices must be branches of 0 to {branches[-1]}, '
                f'got {out_indices!r}'
            )

        cfgs['norm_cfg'] = norm_cfg
        width = self.channels[0]
        self.stem = make_stem(in_channels, width, downsample_times, **cfgs)
        self.injection = make_injection(width, len(branches), downsample_times, **cfgs)
        self.add_equilibrium(
            function,
            forward_solver,
            gradient,
            num_layers,
            initial_guess,
            compile_cell,
            evaluation_dtype,
        )
        self.finish(deploy)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the equilibrium of a batch of images.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: The branches in ``out_indices``, ``(B, C_i, H_i, W_i)``, in
            float32; in the dtype of the images if these are in float64, or if the model
            is in half precision, as after ``model.bfloat16()``.

        Raises:
            ValueError: If ``x`` has another shape or is too small.
        """
        self.check_images(x)
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
            # As convolutions have it: exporters compare the sizes as formulas.
            height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
            # The coarser branches get no injection. An expanded zero takes no memory.
            zero = finest.new_zeros(())
            injections.append(zero.expand(x.shape[0], channels, height, width))
        return self.solve(injections)

    def select(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the maps that ``out_indices`` names.

        Args:
            features (Sequence[Tensor]): One map per branch, ``(B, C_i, H_i, W_i)``.
        """
        return tuple(features[index] for index in self.out_indices)
