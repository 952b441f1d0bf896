"""State dicts of the official releases, in this project's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Optional

from torch import Tensor

# Patterns of the official keys and the names they have here; `re.sub` templates.
_CELL = 'backbone.equilibrium.cell'
_BACKBONE_RULES = {
    r'stage0\.0\.(\w+)': r'backbone.injection.0.conv.\1',
    r'stage0\.1\.(\w+)': r'backbone.injection.0.bn.\1',
    r'fullstage\.branches\.(\d+)\.blocks\.(\d+)\.(conv[12])\.weight_g': (
        rf'{_CELL}.branches.\1.\2.\3.parametrizations.weight.original0'
    ),
    r'fullstage\.branches\.(\d+)\.blocks\.(\d+)\.(conv[12])\.weight_v': (
        rf'{_CELL}.branches.\1.\2.\3.parametrizations.weight.original1'
    ),
    r'fullstage\.branches\.(\d+)\.blocks\.(\d+)\.gn([123])\.(\w+)': (
        rf'{_CELL}.branches.\1.\2.norm\3.\4'
    ),
    r'fullstage\.fuse_layers\.(\d+)\.(\d+)\.net(\.\d+)?\.conv\.(\w+)': (
        rf'{_CELL}.fusion.\1.\2\3.conv.\4'
    ),
    r'fullstage\.fuse_layers\.(\d+)\.(\d+)\.net(\.\d+)?\.gnorm\.(\w+)': (
        rf'{_CELL}.fusion.\1.\2\3.gn.\4'
    ),
    r'fullstage\.post_fuse_layers\.(\d+)\.conv\.weight_g': (
        rf'{_CELL}.post_fusion.\1.1.parametrizations.weight.original0'
    ),
    r'fullstage\.post_fuse_layers\.(\d+)\.conv\.weight_v': (
        rf'{_CELL}.post_fusion.\1.1.parametrizations.weight.original1'
    ),
    r'fullstage\.post_fuse_layers\.(\d+)\.gnorm\.(\w+)': (
        rf'{_CELL}.post_fusion.\1.2.\2'
    ),
}
_HEAD_RULES = {
    'classification': {
        r'incre_modules\.(\d+)\.0\.conv([123])\.(\w+)': (
            r'neck.0.increase.\1.conv\2.0.\3'
        ),
        r'incre_modules\.(\d+)\.0\.bn([123])\.(\w+)': (
            r'neck.0.increase.\1.conv\2.1.\3'
        ),
        r'incre_modules\.(\d+)\.0\.downsample\.([01])\.(\w+)': (
            r'neck.0.increase.\1.projection.\2.\3'
        ),
        r'downsamp_modules\.(\d+)\.([01])\.(\w+)': r'neck.0.downsample.\1.\2.\3',
        r'final_layer\.([01])\.(\w+)': r'neck.0.final.\1.\2',
        r'classifier\.(\w+)': r'head.fc.\1',
    },
    'segmentation': {
        r'last_layer\.0\.(\w+)': r'decode_head.convs.0.conv.\1',
        r'last_layer\.1\.(\w+)': r'decode_head.convs.0.bn.\1',
        r'last_layer\.3\.(\w+)': r'decode_head.conv_seg.\1',
    },
}
_HEAD_KEY = {
    'classification': 'classifier.weight',
    'segmentation': 'last_layer.3.weight',
}
# The stock segmentation head has no bias in this convolution; a norm follows it.
_FOLDED_BIAS = 'decode_head.convs.0.conv.bias'
_FOLDED_INTO = 'decode_head.convs.0.bn.running_mean'


def convert_official_state_dict(
    state_dict: Mapping[str, Tensor], task: Optional[str] = None
) -> dict[str, Tensor]:
    """Renames an official state dict to that of a whole model of the toolboxes.

    The one tensor that changes is the running mean of the segmentation head's norm: it
    takes in the bias of the convolution in front, which the stock ``FCNHead`` does not
    have. At inference the result is the same.

    Args:
        state_dict (Mapping[str, Tensor]): State dict with the keys of the official
            release of 2021, without prefixes.
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
    if task is not None and task not in _HEAD_RULES:
        raise ValueError(f'task must be one of {tuple(_HEAD_RULES)}, got {task!r}')
    found = [name for name, key in _HEAD_KEY.items() if key in state_dict]
    if len(found) != 1 or task not in (None, *found):
        raise ValueError(
            f'task={task!r}: a state dict of a classifier has the key '
            f'{_HEAD_KEY["classification"]!r}, one of a segmentor has '
            f'{_HEAD_KEY["segmentation"]!r}; this one has the keys of {found or "none"}'
        )
    rules = {**_BACKBONE_RULES, **_HEAD_RULES[found[0]]}
    names = {key: _rename(key, rules) for key in state_dict}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise ValueError(f'not keys of an official {found[0]} model: {unknown}')

    converted = {names[key]: tensor for key, tensor in state_dict.items()}
    if _FOLDED_BIAS in converted:
        bias = converted.pop(_FOLDED_BIAS)
        converted[_FOLDED_INTO] = converted[_FOLDED_INTO] - bias
    return converted


def _rename(key: str, rules: Mapping[str, str]) -> Optional[str]:
    stem = re.fullmatch(r'downsample\.(\d+)\.(\w+)', key)
    if stem:
        # Convolution, norm and activation of each step stand in one flat sequence.
        step, layer = divmod(int(stem[1]), 3)
        return f'backbone.stem.{step}.{("conv", "bn")[layer]}.{stem[2]}'
    for pattern, name in rules.items():
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    return None
