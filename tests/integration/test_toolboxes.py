"""The backbone among the stock necks and heads of MMPretrain.

Those of MMSegmentation are in ``test_decode_heads.py``.
"""

import mmpretrain.models
import mmpretrain.structures
import pytest
import torch
from mmengine.registry import init_default_scope

from .decode_heads import mdeq

pytestmark = pytest.mark.versions

CHANNELS = [8, 16, 24, 32]

CLASSIFICATION_NECKS = dict(
    MDEQFuse=(
        dict(
            type='MDEQFuse',
            in_channels=CHANNELS,
            head_channels=(4, 8, 8, 16),
            out_channels=48,
        ),
        48,
    ),
    HRFuseScales=(
        dict(type='HRFuseScales', in_channels=CHANNELS, out_channels=64),
        64,
    ),
)


def classifier(neck, channels):
    init_default_scope('mmpretrain')
    cfg = dict(
        type='ImageClassifier',
        backbone=mdeq(),
        neck=[neck, dict(type='GlobalAveragePooling')],
        head=dict(
            type='LinearClsHead',
            in_channels=channels,
            num_classes=5,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )
    return mmpretrain.models.build_classifier(cfg)


def train_step(model, data):
    """One forward and backward pass; every parameter must take part."""
    model.train()
    model.init_weights()
    losses = model.loss(**model.data_preprocessor(data, training=True))
    loss, _ = model.parse_losses(losses)
    loss.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return loss.item()


class TestClassification:
    @pytest.mark.parametrize('name', CLASSIFICATION_NECKS)
    def test_train_and_predict(self, name):
        model = classifier(*CLASSIFICATION_NECKS[name])
        samples = [
            mmpretrain.structures.DataSample().set_gt_label(label) for label in (1, 3)
        ]
        data = dict(
            inputs=[torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)] * 2,
            data_samples=samples,
        )
        assert train_step(model, data) > 0
        model.eval()
        results = model.test_step(
            dict(
                inputs=[torch.randint(0, 256, (3, 47, 71), dtype=torch.uint8)],
                data_samples=samples[:1],
            )
        )
        assert results[0].pred_score.shape == (5,)
