"""The tools take configs of the new style, which name classes and no scope."""

import pytest
import torch

from ..checkpoints import hostile
from ..isolation import run_main

pytestmark = pytest.mark.versions
TEXT = """
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import LoggerHook, ParamSchedulerHook
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor
from mmcv.transforms import LoadImageFromFile
from torch.optim import SGD

from mdeq_mm.deq import BroydenSolver
from mdeq_mm.engine import AtomicCheckpointHook, ImplicitGradientHook
from mdeq_mm.models import MDEQ

default_scope = None
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(64, 64)),
    backbone=dict(
        type=MDEQ,
        arch=dict(channels=(8, 16), num_groups=4),
        num_layers=2,
        forward_solver=dict(type=BroydenSolver, max_evals=3),
    ),
    decode_head=dict(
        type=FCNHead,
        in_channels=8,
        in_index=0,
        channels=8,
        num_convs=1,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    ),
    test_cfg=dict(mode='whole'),
)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=InfiniteSampler),
    dataset=dict(
        type=BaseSegDataset,
        metainfo=dict(classes=[str(i) for i in range(11)], palette=[[0] * 3] * 11),
        data_root='data/digit_scenes',
        data_prefix=dict(img_path='img_dir/test', seg_map_path='ann_dir/test'),
        img_suffix='.png',
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=LoadAnnotations),
            dict(type=PackSegInputs),
        ],
    ),
)
test_dataloader = dict(train_dataloader, sampler=dict(type=DefaultSampler))
test_evaluator = dict(type=IoUMetric)
test_cfg = dict(type=TestLoop)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
log_processor = dict(by_epoch=False)
default_hooks = dict(
    equilibrium=dict(type=ImplicitGradientHook, pretrain_iters=1),
    checkpoint=dict(type=AtomicCheckpointHook, interval=1, by_epoch=False),
)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'python_config.py'
    path.write_text(TEXT)
    return path


def test_train_resume_and_test(config, scenes):
    run_main('train.py', config, '--work-dir', 'run', cwd=scenes)
    (scenes / 'run/iter_2.pth').unlink()
    run_main('train.py', config, '--work-dir', 'run', '--resume', cwd=scenes)
    output = run_main(
        'test.py', config, 'run/iter_2.pth', '--work-dir', 'run', cwd=scenes
    )
    assert 'mIoU' in output
    run_main(
        'analysis_tools/plot_segmentation.py', config, 'run/iter_2.pth', cwd=scenes
    )
    assert (scenes / 'segmentation.png').exists()


@pytest.mark.parametrize(
    'option', ['load_from=a.pth', 'model.backbone.init_cfg.checkpoint=a.pth']
)
def test_hostile_file_in_the_config(config, scenes, option):
    torch.save(hostile.in_meta(hostile.makes(scenes / 'harm')), scenes / 'a.pth')
    text = TEXT.replace(
        'num_layers=2,',
        "num_layers=2, init_cfg=dict(type=PretrainedInit, checkpoint='b.pth'),",
    )
    config.write_text(text if 'init_cfg' in option else TEXT)
    with pytest.raises(ValueError, match='a.pth is refused and nothing in it was run'):
        run_main(
            *('train.py', config, '--work-dir', 'run', '--cfg-options', option),
            cwd=scenes,
        )
    assert not (scenes / 'harm').exists()
