"""Translation of official state dicts to the names of this project."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Optional

from torch import Tensor, nn

from ..deq.checks import check_choice
from .messages import quote, shorten

MAX_STEM_STEPS = 16
TASKS = ('classification', 'segmentation')
# Official keys and the names they have here. Each * stands for one part of a name, or
# for the rest of a part. The n-th * of a key and the n-th * of its name are the same.
_CELL = 'backbone.equilibrium.cell'
_NORMALISED = (
    ('weight_g', 'parametrizations.weight.original0'),
    ('weight_v', 'parametrizations.weight.original1'),
)
_BACKBONE_NAMES = [
    # The official stem is one flat sequence: convolution, norm and activation of each
    # step.
    *(
        (f'downsample.{3 * step + index}.*', f'backbone.stem.{step}.{layer}.*')
        for step in range(MAX_STEM_STEPS)
        for index, layer in enumerate(('conv', 'bn'))
    ),
    ('stage0.0.*', 'backbone.injection.0.conv.*'),
    ('stage0.1.*', 'backbone.injection.0.bn.*'),
    *(
        (
            f'fullstage.branches.*.blocks.*.conv*.{official}',
            f'{_CELL}.branches.*.*.conv*.{here}',
        )
        for official, here in _NORMALISED
    ),
    ('fullstage.branches.*.blocks.*.gn*.*', f'{_CELL}.branches.*.*.norm*.*'),
    ('fullstage.fuse_layers.*.*.net.conv.*', f'{_CELL}.fusion.*.*.conv.*'),
    ('fullstage.fuse_layers.*.*.net.gnorm.*', f'{_CELL}.fusion.*.*.gn.*'),
    ('fullstage.fuse_layers.*.*.net.*.conv.*', f'{_CELL}.fusion.*.*.*.conv.*'),
    ('fullstage.fuse_layers.*.*.net.*.gnorm.*', f'{_CELL}.fusion.*.*.*.gn.*'),
    *(
        (
            f'fullstage.post_fuse_layers.*.conv.{official}',
            f'{_CELL}.post_fusion.*.1.{here}',
        )
        for official, here in _NORMALISED
    ),
    ('fullstage.post_fuse_layers.*.gnorm.*', f'{_CELL}.post_fusion.*.2.*'),
]
_NAMES = {
    'classification': [
        *_BACKBONE_NAMES,
        ('incre_modules.*.0.conv*.*', 'neck.0.increase.*.conv*.0.*'),
        ('incre_modules.*.0.bn*.*', 'neck.0.increase.*.conv*.1.*'),
        ('incre_modules.*.0.downsample.*.*', 'neck.0.increase.*.projection.*.*'),
        ('downsamp_modules.*.*.*', 'neck.0.downsample.*.*.*'),
        ('final_layer.*.*', 'neck.0.final.*.*'),
        ('classifier.*', 'head.fc.*'),
    ],
    'segmentation': [
        *_BACKBONE_NAMES,
        ('last_layer.0.*', 'decode_head.convs.0.conv.*'),
        ('last_layer.1.*', 'decode_head.convs.0.bn.*'),
        ('last_layer.3.*', 'decode_head.conv_seg.*'),
    ],
}
_HEADS = {'classification': 'classifier.', 'segmentation': 'last_layer.'}
# The stock segmentation head has no bias in this convolution. A norm follows, so that
# the bias can become a shift of the running mean.
_FOLDED_BIAS = 'last_layer.0.bias'
_FOLDED_INTO = 'decode_head.convs.0.bn.running_mean'
# How many keys of a kind a message lists.
_LISTED = 50


def tell_task(state_dict: Mapping[str, Tensor]) -> str:
    """Tells by the keys what an official model is for.

    Args:
        state_dict (Mapping[str, Tensor]): Official state dict, without prefixes.

    Returns:
        str: ``'classification'`` or ``'segmentation'``.

    Raises:
        ValueError: If the keys are of neither or of both.
    """
    found = [
        task
        for task, prefix in _HEADS.items()
        if any(key.startswith(prefix) for key in state_dict)
    ]
    if len(found) != 1:
        raise ValueError(
            'not an official model: one of a classifier has keys '
            f'{_HEADS["classification"]}*, one of a segmentor '
            f'{_HEADS["segmentation"]}*; this one has '
            f'{"both" if found else "neither"}: '
            f'{shorten(state_dict, 3)}'
        )
    return found[0]


def convert_official_state_dict(
    state_dict: Mapping[str, Tensor], task: Optional[str] = None
) -> dict[str, Tensor]:
    """Renames an official state dict to that of a whole model of the toolboxes.

    The one tensor that changes is the running mean of the segmentation head's norm: it
    takes in the bias of the convolution in front, which the stock ``FCNHead`` does not
    have. At inference the result is the same.

    Args:
        state_dict (Mapping[str, Tensor]): State dict with the keys of the official
            release of 2021, without prefixes, as
            :func:`read_official_checkpoint` gives it.
        task (str, optional): ``'classification'`` or ``'segmentation'``.
            Defaults to None, told by the keys.

    Returns:
        dict[str, Tensor]: State dict of an mmpretrain ``ImageClassifier`` with the neck
        ``[MDEQFuse, GlobalAveragePooling]`` and a ``LinearClsHead``, or of an mmseg
        ``EncoderDecoder`` with an ``FCNHead``.

    Raises:
        ValueError: If the task is unknown or not the one of the state dict, or keys are
            not official ones; the message names them.
    """
    if task is not None:
        check_choice('task', task, TASKS)
    told = tell_task(state_dict)
    if task not in (None, told):
        raise ValueError(f'task={task!r}, but the keys are those of {told}')
    converted: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state_dict.items():
        name = _translate(key, _NAMES[told])
        if name is None:
            unknown.append(key)
        elif key != _FOLDED_BIAS:
            converted[name] = tensor
    if unknown:
        raise ValueError(f'not keys of an official {told} model: {shorten(unknown)}')
    if _FOLDED_BIAS in state_dict:
        mean = converted[_FOLDED_INTO]
        converted[_FOLDED_INTO] = mean - state_dict[_FOLDED_BIAS]
    return converted


def check_official_state_dict(
    state_dict: Mapping[str, Tensor], model: nn.Module
) -> None:
    """Checks key by key that an official state dict fits a model.

    Args:
        state_dict (Mapping[str, Tensor]): Official state dict, without prefixes.
        model (nn.Module): Whole model of a toolbox. It may be on the meta device.

    Raises:
        ValueError: If keys are missing or too many, or tensors have other shapes or
            are integers where the model has floating point numbers, or the other way
            round. The message lists them by kind, up to 50 of each, by their official
            names if they have one.
    """
    task = tell_task(state_dict)
    expected = {}
    for name, tensor in model.state_dict().items():
        key = _translate(name, [pair[::-1] for pair in _NAMES[task]])
        expected[key or name] = tensor
        if task == 'segmentation' and name == _FOLDED_INTO:
            expected[_FOLDED_BIAS] = tensor
    both = [key for key in expected if key in state_dict]
    problems = {
        'missing': [key for key in expected if key not in state_dict],
        'too many': [quote(key) for key in state_dict if key not in expected],
        'misshapen': [
            f'{key} is {tuple(state_dict[key].shape)}, not {tuple(expected[key].shape)}'
            for key in both
            if state_dict[key].shape != expected[key].shape
        ],
        'wrong type': [
            f'{key} is {state_dict[key].dtype}, not {expected[key].dtype}'
            for key in both
            if state_dict[key].is_floating_point() != expected[key].is_floating_point()
        ],
    }
    lines = []
    for kind, found in problems.items():
        lines += [f'\n  {kind}: {problem}' for problem in found[:_LISTED]]
        if len(found) > _LISTED:
            lines.append(f'\n  {kind}: {len(found) - _LISTED} more')
    if lines:
        number = sum(map(len, problems.values()))
        raise ValueError(
            f'{number} of {len({*expected, *state_dict})} tensors do not fit the '
            f'model:{"".join(lines)}'
        )


def _translate(name: str, pairs: Sequence[tuple[str, str]]) -> Optional[str]:
    for source, target in pairs:
        pattern = re.escape(source).replace(r'\*', r'([^.]+)')
        match = re.fullmatch(pattern, name)
        if match:
            return target.replace('*', '{}').format(*match.groups())
    return None
