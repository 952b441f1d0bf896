"""Description of the model that an official state dict belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Optional, Union

from torch import Tensor

from ..models import MDEQ, MultiscaleCell
from .official import MAX_STEM_STEPS, tell_task

# Halvings in the stem of the published classifiers, by the last width of their heads.
_DOWNSAMPLE_TIMES = {1680: 0, 2048: 2}
# Published models have up to four branches of one block. The model that a file is
# checked against has about as many parts as the file names.
_MAX_BRANCHES, _MAX_BLOCKS = 16, 64


@dataclass(frozen=True)
class OfficialModel:
    """The model that an official state dict belongs to, as far as shapes tell.

    Attributes:
        task (str): ``'classification'`` or ``'segmentation'``.
        channels (tuple[int]): Channels of each branch.
        num_blocks (tuple[int]): Residual blocks of each branch.
        num_big_kernels (tuple[int]): 5x5 convolutions per residual block of each
            branch.
        expansion (int): Expansion of the residual blocks.
        post_norm_affine (bool): Affine parameters in the norm after the fusion.
        downsample_times (int, optional): Halvings in the stem, None if nothing tells.
        num_classes (int): Number of classes.
        head_channels (tuple[int]): Inner widths of the classification head. Empty for a
            segmentor.
        out_channels (int): Channels in front of the last layer.
        num_parameters (int): Number of parameters in the file.
    """

    task: str
    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    num_big_kernels: tuple[int, ...]
    expansion: int
    post_norm_affine: bool
    downsample_times: Optional[int]
    num_classes: int
    head_channels: tuple[int, ...]
    out_channels: int
    num_parameters: int

    @property
    def arch(self) -> Union[str, dict]:
        """``arch`` of the backbone: a name if it has one, else a dict.

        Shapes do not tell the groups of the norms. The official models all have eight,
        which is the default of the cell. A stem that nothing tells is taken to be that
        of the default.
        """
        told: dict[str, Any] = dict(
            channels=self.channels,
            num_blocks=self.num_blocks,
            num_big_kernels=self.num_big_kernels,
            expansion=self.expansion,
            post_norm_affine=self.post_norm_affine,
        )
        if self.downsample_times is not None:
            told['downsample_times'] = self.downsample_times
        for name, settings in MDEQ.arch_settings.items():
            if _complete(settings) == _complete(told):
                return name
        plain = _complete(dict(channels=self.channels))
        changed = {key: value for key, value in told.items() if value != plain[key]}
        return dict(channels=self.channels, **changed)

    def model_config(self) -> dict:
        """Returns the ``model`` of a config whose model takes the weights.

        Solvers are the defaults of the backbone, because no checkpoint tells them.
        """
        backbone = dict(type='MDEQ', arch=self.arch)
        if self.task == 'segmentation':
            return dict(
                type='EncoderDecoder',
                backbone=backbone,
                decode_head=dict(
                    type='FCNHead',
                    in_channels=list(self.channels),
                    in_index=list(range(len(self.channels))),
                    input_transform='resize_concat',
                    channels=self.out_channels,
                    kernel_size=1,
                    num_convs=1,
                    concat_input=False,
                    dropout_ratio=0,
                    num_classes=self.num_classes,
                    norm_cfg=dict(type='BN', momentum=0.01, requires_grad=True),
                    align_corners=True,
                ),
                test_cfg=dict(mode='whole'),
            )
        return dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=[
                dict(
                    type='MDEQFuse',
                    in_channels=self.channels,
                    head_channels=self.head_channels,
                    out_channels=self.out_channels,
                ),
                dict(type='GlobalAveragePooling'),
            ],
            head=dict(
                type='LinearClsHead',
                num_classes=self.num_classes,
                in_channels=self.out_channels,
                loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
            ),
        )


def _complete(arch: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to an architecture what the backbone takes for the keys it leaves out."""
    parameters = signature(MultiscaleCell).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    n_branches = len(arch['channels'])
    defaults.update(
        num_blocks=(1,) * n_branches,
        num_big_kernels=(0,) * n_branches,
        downsample_times=MDEQ.default_downsample_times,
    )
    return {**defaults, **arch}


def describe_official_state_dict(state_dict: Mapping[str, Tensor]) -> OfficialModel:
    """Tells an official model by the shapes of its tensors.

    Every width stands in several tensors, and what most of them say counts. So one
    tensor that is missing or misshapen does not change the description. The strides of
    a stem of two convolutions have no trace in the weights. If there is no ``stage0``,
    nothing is strided. Otherwise the heads of the published classifiers tell, and
    segmentors all halve twice.

    Args:
        state_dict (Mapping[str, Tensor]): Official state dict, without prefixes.

    Returns:
        OfficialModel: The description.

    Raises:
        ValueError: If it is not the state dict of a whole official model.
    """
    task = tell_task(state_dict)
    n_branches = _count(state_dict, 'fullstage.branches.', _MAX_BRANCHES)
    if not n_branches:
        raise ValueError('not an official model: no keys fullstage.branches.0.*')
    shapes = _Shapes(state_dict)
    branches = [f'fullstage.branches.{i}.blocks' for i in range(n_branches)]
    channels = tuple(
        shapes.common(
            (f'{branch}.0.gn3.weight', 0),
            (f'{branch}.0.gn3.bias', 0),
            (f'{branch}.0.gn2.weight', 0),
            (f'{branch}.0.gn2.bias', 0),
            (f'{branch}.0.conv2.weight_g', 0),
        )
        for branch in branches
    )
    inner = shapes.common(
        (f'{branches[0]}.0.gn1.weight', 0),
        (f'{branches[0]}.0.gn1.bias', 0),
        (f'{branches[0]}.0.conv1.weight_g', 0),
    )
    if task == 'classification':
        head_channels = tuple(
            shapes.common(
                (f'incre_modules.{i}.0.bn1.running_mean', 0),
                (f'incre_modules.{i}.0.bn1.running_var', 0),
                (f'incre_modules.{i}.0.bn2.running_mean', 0),
            )
            for i in range(n_branches)
        )
        out_channels = shapes.common(
            ('final_layer.1.weight', 0),
            ('final_layer.1.bias', 0),
            ('final_layer.1.running_mean', 0),
        )
        classifier = 'classifier'
    else:
        head_channels, out_channels = (), sum(channels)
        classifier = 'last_layer.3'
    return OfficialModel(
        task=task,
        channels=channels,
        num_blocks=tuple(
            _count(state_dict, f'{branch}.', _MAX_BLOCKS) for branch in branches
        ),
        num_big_kernels=tuple(
            sum(
                shapes.size(f'{branch}.0.{conv}.weight_v', 2) == 5
                for conv in ('conv1', 'conv2')
            )
            for branch in branches
        ),
        expansion=inner // channels[0],
        post_norm_affine=any('.post_fuse_layers.0.gnorm.' in key for key in state_dict),
        downsample_times=_downsample_times(state_dict, task, out_channels),
        num_classes=shapes.common(
            (f'{classifier}.weight', 0), (f'{classifier}.bias', 0)
        ),
        head_channels=head_channels,
        out_channels=out_channels,
        num_parameters=sum(
            tensor.numel()
            for key, tensor in state_dict.items()
            if not key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
        ),
    )


def _downsample_times(
    state_dict: Mapping[str, Tensor], task: str, out_channels: int
) -> Optional[int]:
    if not any(key.startswith('stage0.') for key in state_dict):
        return 0
    # A step is a convolution, a norm and an activation, which has no key.
    n_steps = _count(state_dict, 'downsample.', MAX_STEM_STEPS, width=3)
    if n_steps > 2:
        return n_steps
    return 2 if task == 'segmentation' else _DOWNSAMPLE_TIMES.get(out_channels)


def _count(
    state_dict: Mapping[str, Tensor], prefix: str, most: int, width: int = 1
) -> int:
    """Counts the parts whose index follows a prefix: those from 0 on without a gap.

    An index beyond a gap is none that a model of so many parts can have, and the check
    of the keys will say so.

    Args:
        state_dict (Mapping[str, Tensor]): The keys.
        prefix (str): What stands in front of the index.
        most (int): How many parts a model can have.
        width (int): Number of indices per part. Defaults to 1.

    Raises:
        ValueError: If there are more parts than that.
    """
    pattern = re.compile(re.escape(prefix) + r'([0-9]{1,4})\.')
    matches = (pattern.match(key) for key in state_dict)
    found = {int(match[1]) // width for match in matches if match}
    number = next(index for index in range(len(found) + 1) if index not in found)
    if number > most:
        raise ValueError(
            f'not an official model: {prefix}* counts to {number}, at most {most} are '
            'allowed'
        )
    return number


class _Shapes:
    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self.state_dict = state_dict

    def size(self, key: str, dim: int) -> Optional[int]:
        """Returns the size of a dimension, None where there is none."""
        if key not in self.state_dict or self.state_dict[key].dim() <= dim:
            return None
        return self.state_dict[key].shape[dim]

    def common(self, *places: tuple[str, int]) -> int:
        """Returns the size that most of some dimensions have."""
        sizes = [self.size(*place) for place in places]
        found = Counter(size for size in sizes if size)
        if not found:
            raise ValueError(
                'not a whole official model, missing: '
                + ', '.join(key for key, _ in places)
            )
        return found.most_common(1)[0][0]
