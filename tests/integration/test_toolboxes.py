"""The backbone among the stock heads and necks of both toolboxes."""

from importlib.metadata import distributions

import mmpretrain.models
import mmpretrain.structures
import mmseg.models
import mmseg.structures
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

pytestmark = pytest.mark.versions

# Word for word the same in every model below.
BACKBONE = dict(
    type='MDEQ',
    arch=dict(channels=(8, 16, 24, 32), num_groups=4, expansion=2),
    forward_solver=dict(type='AndersonSolver', max_evals=8, tol=1e-3),
    gradient=dict(
        type='ImplicitGradient', solver=dict(type='PicardSolver', max_evals=6)
    ),
)
CHANNELS = [8, 16, 24, 32]
NORM = dict(type='BN', requires_grad=True)

SEGMENTATION_HEADS = dict(
    FCNHead=dict(
        type='FCNHead',
        in_channels=CHANNELS,
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat',
        channels=80,
        kernel_size=1,
        num_convs=1,
        concat_input=False,
        num_classes=5,
        norm_cfg=NORM,
        align_corners=True,
    ),
    PSPHead=dict(
        type='PSPHead',
        in_channels=32,
        in_index=3,
        channels=16,
        pool_scales=(1, 2),
        num_classes=5,
        norm_cfg=NORM,
        align_corners=False,
    ),
    UPerHead=dict(
        type='UPerHead',
        in_channels=CHANNELS,
        in_index=[0, 1, 2, 3],
        channels=16,
        pool_scales=(1, 2),
        num_classes=5,
        norm_cfg=NORM,
        align_corners=False,
    ),
)

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


def segmentor(head):
    init_default_scope('mmseg')
    cfg = dict(
        type='EncoderDecoder',
        backbone=BACKBONE,
        decode_head=head,
        test_cfg=dict(mode='whole'),
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[127.5] * 3,
            std=[127.5] * 3,
            size=(64, 96),
            seg_pad_val=255,
        ),
    )
    return mmseg.models.build_segmentor(ConfigDict(cfg))


def classifier(neck, channels):
    init_default_scope('mmpretrain')
    cfg = dict(
        type='ImageClassifier',
        backbone=BACKBONE,
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


class TestSegmentation:
    @pytest.mark.parametrize('name', SEGMENTATION_HEADS)
    def test_train_and_predict(self, name):
        model = segmentor(SEGMENTATION_HEADS[name])
        sample = mmseg.structures.SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, 64, 96)))
        )
        data = dict(
            inputs=[torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)] * 2,
            data_samples=[sample, sample],
        )
        assert train_step(model, data) > 0
        # Any image size, without padding.
        image = torch.randint(0, 256, (3, 47, 71), dtype=torch.uint8)
        sample = mmseg.structures.SegDataSample(
            metainfo=dict(ori_shape=(47, 71), img_shape=(47, 71), pad_shape=(47, 71))
        )
        model.eval()
        (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
        assert result.pred_sem_seg.shape == (47, 71)

    def test_head_with_a_compiled_op(self):
        """It works with mmcv, and says what is missing with mmcv-lite."""
        head = dict(
            type='PSAHead',
            in_channels=32,
            in_index=3,
            channels=8,
            num_classes=5,
            mask_size=(3, 3),
            norm_cfg=NORM,
            align_corners=False,
        )
        model = segmentor(head).eval()
        features = [torch.rand(2, c, 3, 3) for c in CHANNELS]
        if any(d.metadata['Name'] == 'mmcv-lite' for d in distributions()):
            with pytest.raises(ImportError, match='install mmcv instead of mmcv-lite'):
                model.decode_head(features)
        else:
            assert model.decode_head(features).shape == (2, 5, 3, 3)


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
