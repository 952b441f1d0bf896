import pytest
from mmengine.config import Config

from mdeq_mm.engine import task_config

from ...multi_task import MDEQ, model_config


@pytest.fixture
def cfg():
    return Config(
        dict(
            default_scope='mmengine',
            custom_imports=dict(imports=['mdeq_mm']),
            model=model_config(),
            train_dataloader=dict(classes=dict(a=1), pixels=dict(a=2)),
            train_cfg=dict(type='MultiTaskTrainLoop', max_iters=3),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            val_dataloader=dict(pixels=dict(a=3)),
            val_evaluator=dict(pixels=dict(type='IoUMetric')),
            val_cfg=dict(type='MultiTaskValLoop'),
            test_dataloader=dict(classes=dict(a=4), pixels=dict(a=5)),
            test_evaluator=dict(classes=[dict(type='Accuracy')], pixels=dict(type='b')),
            test_cfg=dict(type='MultiTaskTestLoop', fp16=True),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', save_best='pixels/mIoU'),
                equilibrium=dict(type='ImplicitGradientHook'),
            ),
        )
    )


def test_of_a_task(cfg):
    before = cfg.to_dict()
    single = task_config(cfg, 'pixels').to_dict()
    task = before['model']['tasks']['pixels']
    del task['_scope_']
    assert single == dict(
        default_scope='mmseg',
        custom_imports=dict(imports=['mdeq_mm']),
        model=dict(task, backbone=MDEQ),
        val_dataloader=dict(a=3),
        val_evaluator=dict(type='IoUMetric'),
        val_cfg=dict(type='ValLoop'),
        test_dataloader=dict(a=5),
        test_evaluator=dict(type='b'),
        test_cfg=dict(type='TestLoop', fp16=True),
        default_hooks=dict(equilibrium=dict(type='ImplicitGradientHook')),
    )
    assert cfg.to_dict()['model']['tasks']['pixels']['_scope_'] == 'mmseg'


def test_of_a_task_without_validation(cfg):
    single = task_config(cfg, 'classes')
    assert single.default_scope == 'mmpretrain'
    assert not {'val_dataloader', 'val_evaluator', 'val_cfg'} & set(single)
    assert single.test_evaluator == [dict(type='Accuracy')]


@pytest.mark.parametrize(
    ('common', 'of_backbone'), [('mmseg', 'mmseg'), ('mmpretrain', None)]
)
def test_backbone_of_the_common_scope(cfg, common, of_backbone):
    """Where the scope of the task is another, the backbone keeps its own."""
    cfg.default_scope = common
    single = task_config(cfg, 'classes')
    assert single.model.backbone.get('_scope_') == of_backbone


def test_errors(cfg):
    with pytest.raises(ValueError, match='one of classes, pixels, got boxes'):
        task_config(cfg, 'boxes')
    cfg.model = cfg.model.tasks.classes
    with pytest.raises(ValueError, match='must be a MultiTaskModel, got ImageClass'):
        task_config(cfg, 'classes')
