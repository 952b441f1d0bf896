"""Whole models of both toolboxes on an accelerator."""

import copy
from functools import partial

import mmpretrain.models
import mmpretrain.structures
import mmseg.models
import mmseg.structures
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint
from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu
from mmengine.structures import PixelData

from mdeq_mm import apis

pytestmark = pytest.mark.cuda

SOLVER = dict(type='BroydenSolver', max_evals=12, tol=1e-3)
BACKBONE = dict(
    type='MDEQ',
    arch=dict(channels=(8, 16), num_groups=4),
    dropout=0.0,
    forward_solver=SOLVER,
    gradient=dict(type='ImplicitGradient', solver=SOLVER),
)
SEGMENTOR = dict(
    type='EncoderDecoder',
    backbone=BACKBONE,
    decode_head=dict(
        type='FCNHead',
        in_channels=[8, 16],
        in_index=[0, 1],
        input_transform='resize_concat',
        channels=24,
        kernel_size=1,
        num_convs=1,
        concat_input=False,
        num_classes=5,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=True,
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce'),
            dict(
                type='ClassWeightedCrossEntropyLoss',
                class_weight=[1.0, 2.0, 1.0, 0.5, 0.0],
                loss_name='loss_weighted',
            ),
        ],
    ),
    test_cfg=dict(mode='whole'),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        size=(40, 56),
        seg_pad_val=255,
    ),
)
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=BACKBONE,
    neck=[
        dict(
            type='MDEQFuse', in_channels=[8, 16], head_channels=(4, 8), out_channels=24
        ),
        dict(type='GlobalAveragePooling'),
    ],
    head=dict(
        type='LinearClsHead',
        in_channels=24,
        num_classes=5,
        loss=dict(type='CrossEntropyLoss'),
    ),
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
)
SCOPES = dict(mmseg=SEGMENTOR, mmpretrain=CLASSIFIER)
BUILDERS = dict(
    mmseg=mmseg.models.build_segmentor, mmpretrain=mmpretrain.models.build_classifier
)


@pytest.fixture(params=SCOPES)
def scope(request):
    with DefaultScope.overwrite_default_scope(request.param):
        yield request.param


@pytest.fixture
def model(scope, calm):
    torch.manual_seed(0)
    model = BUILDERS[scope](ConfigDict(SCOPES[scope]))
    calm(model.backbone.equilibrium)
    return model


def batch(scope, seed):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for label in (1, 3):
        if scope == 'mmseg':
            labels = torch.randint(0, 5, (1, 40, 56), generator=generator)
            labels[:, :4] = 255
            size = dict(ori_shape=(40, 56), img_shape=(40, 56), pad_shape=(40, 56))
            sample = mmseg.structures.SegDataSample(
                metainfo=size, gt_sem_seg=PixelData(data=labels)
            )
        else:
            sample = mmpretrain.structures.DataSample().set_gt_label(label)
        samples.append(sample)
    images = torch.randint(0, 256, (2, 3, 40, 56), generator=generator)
    return dict(inputs=list(images.to(torch.uint8)), data_samples=samples)


def predictions(results):
    return [
        result.seg_logits.data if 'seg_logits' in result else result.pred_score
        for result in results
    ]


class DeviceAutocast(OptimWrapper):
    """AmpOptimWrapper of mmengine knows none but the devices on its list."""

    def __init__(self, device, dtype, optimizer, **kwargs):
        super().__init__(optimizer, **kwargs)
        self.autocast = torch.autocast(device, dtype)

    def optim_context(self, model):
        return self.autocast


def train(model, scope, n_steps=3, wrap=OptimWrapper):
    """Trains with an optimizer and clipped gradients; returns the losses."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = wrap(optimizer, clip_grad=dict(max_norm=0.1))
    steps = [model.train_step(batch(scope, seed), wrapper) for seed in range(n_steps)]
    return [step['loss'] for step in steps]


class TestTraining:
    def test_values(self, model, scope, device, same):
        twin = copy.deepcopy(model).to(device)
        losses, expected = train(twin, scope), train(model, scope)
        for ours, theirs in zip(losses, expected):
            assert ours.device.type == device
            same(ours, theirs)
        state, expected = twin.state_dict(), model.state_dict()
        assert all(value.device.type == device for value in state.values())
        for name, value in expected.items():
            same(state[name], value)
        twin.eval()
        model.eval()
        results = predictions(twin.test_step(batch(scope, 9)))
        for ours, theirs in zip(results, predictions(model.test_step(batch(scope, 9)))):
            same(ours, theirs)

    def test_reads(self, model, scope, device, reads):
        """One look every third evaluation of the two solves, and no other read."""
        model.to(device).train()
        with reads() as found:
            train(model, scope, n_steps=2)
        assert {read.file.rpartition('/')[2] for read in found} == {'samples.py'}
        assert len(found) <= 2 * 2 * SOLVER['max_evals'] // 3

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_autocast(self, model, scope, device, dtype):
        model.to(device)
        before = copy.deepcopy(model.state_dict())
        losses = train(model, scope, wrap=partial(DeviceAutocast, device, dtype))
        assert all(loss.isfinite() for loss in losses)
        after = model.state_dict()
        assert all(value.isfinite().all() for value in after.values())
        trained = [name for name, _ in model.named_parameters() if 'fusion' in name]
        assert len(trained) > 4
        assert not any(before[name].equal(after[name]) for name in trained)


class TestLoading:
    """The path of the tools."""

    @pytest.fixture
    def checkpoint(self, model, tmp_path):
        path = tmp_path / 'model.pth'
        save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(path))
        return path

    @pytest.fixture
    def config(self, scope):
        return Config(dict(model=SCOPES[scope], default_scope=scope))

    @pytest.mark.parametrize('named', [True, False])
    def test_model(
        self, model, scope, checkpoint, config, device, default_device, same, named
    ):
        with default_device('cpu' if named else device):
            loaded = apis.load_model(config, checkpoint, device if named else None)
        assert all(p.device.type == device for p in loaded.parameters())
        model.eval()
        results = predictions(loaded.test_step(batch(scope, 0)))
        for ours, theirs in zip(results, predictions(model.test_step(batch(scope, 0)))):
            same(ours, theirs)

    def test_deployed(self, model, scope, checkpoint, config, device):
        loaded = apis.load_model(config, checkpoint, device)
        loaded.backbone.switch_to_deploy()
        model.eval()
        results = predictions(loaded.test_step(batch(scope, 0)))
        for ours, theirs in zip(results, predictions(model.test_step(batch(scope, 0)))):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-2, atol=1e-3)

    def test_checkpoint_of_the_device(
        self, model, scope, config, device, tmp_path, same
    ):
        path = tmp_path / 'device.pth'
        model.to(device)
        state = weights_to_cpu(get_state_dict(model))  # as runners do
        save_checkpoint(dict(state_dict=state, meta={}), str(path))
        loaded = apis.load_model(config, path, 'cpu')
        for name, value in loaded.state_dict().items():
            assert value.is_cpu
            same(model.state_dict()[name], value)
