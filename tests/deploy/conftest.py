"""Small models of both kinds, with random weights and normalisation."""

import pytest
import torch
from mmengine.config import Config

from mdeq_mm.apis import build_model

BACKBONE = dict(
    type='MDEQ',
    arch=dict(channels=(4, 8), num_groups=2, expansion=1),
    downsample_times=1,
)
NORMALIZATION = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])
SEGMENTOR = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', bgr_to_rgb=True, **NORMALIZATION
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=(4, 8),
        in_index=(0, 1),
        input_transform='resize_concat',
        channels=4,
        num_convs=1,
        num_classes=3,
    ),
    test_cfg=dict(mode='whole'),
)
CLASSIFIER = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', to_rgb=True, **NORMALIZATION),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=8),
)
CONFIGS = dict(
    segmentor=Config(dict(default_scope='mmseg', model=SEGMENTOR)),
    classifier=Config(dict(default_scope='mmpretrain', model=CLASSIFIER)),
)


@pytest.fixture
def make_model(calm):
    """Makes a model of a kind whose cell is a contraction."""

    def make(kind, **options):
        cfg = CONFIGS[kind].copy()
        cfg.model = dict(cfg.model, backbone=dict(BACKBONE, **options))
        torch.manual_seed(0)
        return calm(build_model(cfg))

    return make
