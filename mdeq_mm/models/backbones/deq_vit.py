"""Vision transformer at equilibrium.

The self-attention model of Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS
2019, https://arxiv.org/abs/1909.01377, on the patches of Dosovitskiy et al., "An Image
is Worth 16x16 Words", ICLR 2021, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmcv.cnn import build_conv_layer
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...deq import EquilibriumGradient, FixedPointSolver, InitialGuess
from ...deq.checks import check_choice, check_int
from ..cells import TransformerCell
from .base import EquilibriumBackbone

ARCH_KEYS = ('embed_dims', 'num_heads', 'feedforward_channels')
OUT_TYPES = ('featmap', 'avg_featmap', 'cls_token')


@MODELS.register_module()
class DEQViT(EquilibriumBackbone):
    """Vision transformer whose one block is at equilibrium.

    The image is cut into patches, and each patch becomes a token. A vision transformer
    sends the tokens through a stack of blocks with weights of their own. This backbone
    returns the equilibrium of one block, :class:`TransformerCell`, which gets the
    embedded patches as its injection in each evaluation. So the parameters are those of
    one block. Gradients are implicit, so that training memory does not depend on the
    number of evaluations.

    ``outputs[0]`` is an identity that each pass gives the map of the patches, once, and
    ``outputs[1]`` the class token, if there is one: the module to name where a tool
    asks for a layer.

    Any image size works. Sizes that are no multiple of ``patch_size`` are padded with
    zeros, and the position embedding is resized, as that of MMPretrain's
    ``VisionTransformer``.

    Args:
        arch (str or dict): ``'tiny'``, ``'small'`` or ``'base'``, with the widths of
            DeiT; or a dict of ``embed_dims``, ``num_heads`` and
            ``feedforward_channels``. Defaults to ``'tiny'``.
        img_size (int or tuple[int, int]): Height and width of the usual image, which
            give the size of the position embedding. Defaults to 224.
        patch_size (int): Height and width of a patch. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        out_type (str): What is returned: ``'featmap'``, the tokens as a map;
            ``'avg_featmap'``, their mean; or ``'cls_token'``, a token that stands for
            the image and exists in this case alone. Defaults to ``'featmap'``.
        forward_solver (FixedPointSolver or dict): Solver of the equilibrium.
            Defaults to ``dict(type='AndersonSolver', max_evals=26, tol=1e-3,
            returns='evaluation')``.
        gradient (EquilibriumGradient or dict): How to differentiate the equilibrium.
            Defaults to ``dict(type='ImplicitGradient', solver=dict(
            type='AndersonSolver', max_evals=27, tol=1e-3))``.
        initial_guess (InitialGuess or dict): Where the solve starts. Defaults to
            ``dict(type='ZeroGuess')``.
        num_layers (int): Evaluations of the cell where it is unrolled instead of
            solved, see :class:`ImplicitGradientHook`. Defaults to 12, the depth of the
            transformers that have these widths.
        dropout (float): Probability of the variational dropout. Defaults to 0.0.
        frozen_stages (int): 0 freezes the embedding of patches and positions, 1 the
            equilibrium as well, -1 nothing. Defaults to -1.
        act_cfg (dict): Config of the activation. Defaults to ``dict(type='GELU')``.
        compile_cell (dict, optional): As for :class:`MDEQ`. Defaults to None.
        evaluation_dtype (str, optional): As for :class:`MDEQ`. Defaults to None.
        init_cfg (dict or list[dict], optional): Initialization config. Defaults to
            None, Xavier's uniform distribution for every linear layer.

    Raises:
        TypeError: If ``arch`` or a config has unknown or missing keys.
        ValueError: If an argument is out of its range.

    Examples:
        >>> import torch
        >>> from mdeq_mm.models import DEQViT
        >>> model = DEQViT(arch='tiny', img_size=64).eval()
        >>> with torch.no_grad():
        ...     (output,) = model(torch.rand(1, 3, 64, 96))
        >>> tuple(output.shape)
        (1, 192, 4, 6)
    """

    arch_settings: dict[str, dict[str, int]] = {
        'tiny': dict(embed_dims=192, num_heads=3, feedforward_channels=768),
        'small': dict(embed_dims=384, num_heads=6, feedforward_channels=1536),
        'base': dict(embed_dims=768, num_heads=12, feedforward_channels=3072),
    }
    default_init_cfg = [
        dict(type='Xavier', layer='Linear', distribution='uniform'),
        dict(type='Constant', layer='LayerNorm', val=1),
    ]
    layers = (('patch_embed', 'patch_norm', 'pos_embed', 'cls_token'), ('equilibrium',))

    def __init__(
        self,
        arch: Union[str, dict] = 'tiny',
        img_size: Union[int, tuple[int, int]] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_type: str = 'featmap',
        forward_solver: Union[FixedPointSolver, dict] = dict(
            type='AndersonSolver', max_evals=26, tol=1e-3, returns='evaluation'
        ),
        gradient: Union[EquilibriumGradient, dict] = dict(
            type='ImplicitGradient',
            solver=dict(type='AndersonSolver', max_evals=27, tol=1e-3),
        ),
        initial_guess: Union[InitialGuess, dict] = dict(type='ZeroGuess'),
        num_layers: int = 12,
        dropout: float = 0.0,
        frozen_stages: int = -1,
        act_cfg: dict = dict(type='GELU'),
        compile_cell: Optional[dict] = None,
        evaluation_dtype: Optional[str] = None,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(in_channels, frozen_stages, False, init_cfg)
        settings = self._settings_of(arch)
        check_int('patch_size', patch_size, 1)
        check_choice('out_type', out_type, OUT_TYPES)
        sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size,) * 2
        for side in sides:
            check_int('img_size', side, 1)
        if len(sides) != 2:
            raise ValueError(f'img_size must be one or two integers, got {img_size!r}')
        self.out_type = out_type
        width = self.embed_dims = settings.pop('embed_dims')
        n_maps = 2 if out_type == 'cls_token' else 1
        cell = TransformerCell(
            (width,) * n_maps, dropout=dropout, act_cfg=act_cfg, **settings
        )

        self.patch_embed = build_conv_layer(
            dict(type='Conv2dAdaptivePadding'),
            in_channels,
            width,
            patch_size,
            stride=patch_size,
        )
        self.patch_norm = nn.LayerNorm(width, eps=1e-6)
        height, length = (-(-side // patch_size) for side in sides)
        self.pos_embed = nn.Parameter(torch.empty(1, width, height, length))
        # Transformers usually begin with 0.02. Beside patches of unit size the block
        # would hardly see where a patch is.
        nn.init.trunc_normal_(self.pos_embed, std=0.5)
        self.cls_token: Optional[nn.Parameter] = None
        if out_type == 'cls_token':
            self.cls_token = nn.Parameter(torch.empty(1, width, 1, 1))
            nn.init.trunc_normal_(self.cls_token, std=0.5)
        self.add_equilibrium(
            cell,
            forward_solver,
            gradient,
            num_layers,
            initial_guess,
            compile_cell,
            evaluation_dtype,
        )
        self.finish(deploy=False)

    def _settings_of(self, arch: Union[str, dict]) -> dict[str, Any]:
        if isinstance(arch, str):
            check_choice('arch', arch, tuple(self.arch_settings))
            return dict(self.arch_settings[arch])
        if not isinstance(arch, dict) or set(arch) != set(ARCH_KEYS):
            raise TypeError(
                f'arch must be a name or a dict of {", ".join(ARCH_KEYS)}, got {arch!r}'
            )
        return dict(arch)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the equilibrium of a batch of images.

        Args:
            x (Tensor): Images, ``(B, in_channels, H, W)``.

        Returns:
            tuple[Tensor]: One tensor, ``(B, C, ceil(H / patch_size), ceil(W /
            patch_size))`` of ``out_type='featmap'`` and ``(B, C)`` of the others.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        self.check_images(x)
        patches = self.patch_embed(x)
        patches = self.patch_norm(patches.movedim(1, 3)).movedim(3, 1)
        injections = [patches + self._positions(patches)]
        if self.cls_token is not None:
            token = self.cls_token.to(patches.dtype)
            injections.append(token.expand(x.shape[0], -1, -1, -1))
        return self.solve(injections)

    def _positions(self, patches: Tensor) -> Tensor:
        """Returns the position embedding in the size and dtype of the patches."""
        positions: Tensor = self.pos_embed
        size = patches.shape[2:]
        if positions.shape[2:] != size:
            # Half precision has no cubic interpolation.
            dtype = torch.promote_types(positions.dtype, torch.float32)
            positions = F.interpolate(
                positions.to(dtype), size=size, mode='bicubic', align_corners=False
            )
        return positions.to(patches.dtype)

    def select(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns what ``out_type`` says.

        Args:
            features (Sequence[Tensor]): The map of the patches, ``(B, C, H, W)``, and
                the class token ``(B, C, 1, 1)``, if there is one.
        """
        if self.out_type == 'featmap':
            return (features[0],)
        if self.out_type == 'avg_featmap':
            return (features[0].mean(dim=(2, 3)),)
        return (features[1].flatten(1),)
