import json
from itertools import count, islice

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import BatchSampler

from mdeq_mm.checkpoints import check_training_checkpoint
from mdeq_mm.deq import Equilibrium
from mdeq_mm.engine.runner.multi_task_loaders import JointLoader, SequentialLoader

from ...multi_task import BACKBONES, MDEQ, model_config

NUMBERS = count()
EVALUATORS = dict(classes=dict(type='Accuracy'), pixels=dict(type='IoUMetric'))
HOOKS = dict(
    checkpoint=dict(
        type='AtomicCheckpointHook',
        interval=2,
        by_epoch=False,
    ),
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    equilibrium=dict(type='ImplicitGradientHook', pretrain_iters=1),
    random_state=dict(type='RandomStateHook'),
    jacobian=dict(type='JacobianRegularizationHook', weight=1e-3),
    trajectory=dict(type='TrajectorySupervisionHook', n_states=2, weight=0.5),
    ema=dict(type='EMAHook'),
    strict=dict(type='StrictLoadingHook'),
)


def loaders(shuffle=True, **sizes):
    sampler = dict(type='DefaultSampler', shuffle=shuffle)
    return {
        task: dict(
            batch_size=size,
            num_workers=0,
            dataset=dict(type='TaskImages', task=task, augmented=shuffle),
            sampler=sampler,
        )
        for task, size in sizes.items()
    }


@pytest.fixture
def make(tmp_path):
    """Makes a runner with loops of several tasks."""

    def make(backbone=MDEQ, hooks=(), **settings):
        defaults = dict(
            model=model_config(backbone),
            work_dir=str(tmp_path / 'run'),
            train_dataloader=loaders(classes=4, pixels=2),
            train_cfg=dict(type='MultiTaskTrainLoop', max_iters=4, val_interval=4),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            val_dataloader=loaders(shuffle=False, classes=4, pixels=2),
            val_cfg=dict(type='MultiTaskValLoop'),
            val_evaluator=EVALUATORS,
            default_hooks={name: HOOKS[name] for name in ('checkpoint', 'logger')},
            custom_hooks=list(hooks),
            log_processor=dict(by_epoch=False),
            randomness=dict(seed=0),
            log_level='WARNING',
            experiment_name=f'{tmp_path.name} {next(NUMBERS)}',
        )
        return Runner(**{**defaults, **settings})

    return make


class Recorder(Hook):
    """Notes what it is called with."""

    def __init__(self):
        self.calls = []

    def before_val(self, runner):
        self.calls.append('before_val')

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        assert len(outputs) == len(data_batch['inputs'])
        self.calls.append((batch_idx, type(outputs[0]).__name__))

    def after_val_epoch(self, runner, metrics):
        self.calls.append(sorted(metrics))


@pytest.mark.parametrize('backbone', BACKBONES)
def test_trains_and_validates(make, tmp_path, backbone):
    recorder = Recorder()
    best = ['pixels/mIoU', 'classes/accuracy/top1']
    checkpoint = dict(HOOKS['checkpoint'], save_best=best)
    hooks = dict(checkpoint=checkpoint, logger=HOOKS['logger'])
    runner = make(BACKBONES[backbone], [recorder], default_hooks=hooks)
    runner.train()
    assert runner.iter == 4
    metrics = [
        'classes/accuracy/top1',
        'pixels/aAcc',
        'pixels/mAcc',
        'pixels/mIoU',
    ]
    batches = [(0, 'DataSample'), (1, 'DataSample')]
    batches += [(number, 'SegDataSample') for number in (2, 3, 4)]
    assert recorder.calls == ['before_val', *batches, metrics]
    scalars = runner.message_hub.log_scalars
    losses = {'train/classes/loss', 'train/pixels/decode.loss_ce', 'train/loss'}
    assert losses <= set(scalars)
    for name in metrics:
        assert 0 <= scalars[f'val/{name}'].current() <= 100
    (path,) = tmp_path.glob('run/*/vis_data/scalars.json')
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(metrics) <= set(records[-1])
    # Best ones by the metrics of each task.
    for name in ('pixels_mIoU', 'classes_accuracy_top1'):
        assert list(tmp_path.glob(f'run/best_{name}_iter_*.pth')), name
    meta = torch.load(tmp_path / 'run/iter_4.pth', weights_only=False)['meta']
    assert {task: info['task'] for task, info in meta['dataset_meta'].items()} == dict(
        classes='classes', pixels='pixels'
    )


def test_a_task_is_validated_as_alone(make):
    """Each metric sees the images, and the number of them, of its own task."""
    together = make().val()
    for task, metric in EVALUATORS.items():
        alone = make(
            val_dataloader=loaders(shuffle=False, **{task: 3}),
            val_evaluator={task: metric},
        ).val()
        expected = {name for name in together if name.startswith(f'{task}/')}
        assert set(alone) == expected
        for name, value in alone.items():
            assert value == pytest.approx(together[name], nan_ok=True)


def test_metrics_of_the_equilibrium(make):
    """Those of a task are of its own images."""
    statistics = dict(type='SolverStatistics')
    runner = make(
        hooks=[HOOKS['equilibrium']],
        val_evaluator={
            task: [metric, statistics] for task, metric in EVALUATORS.items()
        },
    )
    runner.train()
    # 6 images each, in two and three batches.
    for evaluator in runner.val_loop.evaluators.values():
        assert evaluator.metrics[1].results == []
    metrics = runner.message_hub.log_scalars
    for task in EVALUATORS:
        assert metrics[f'val/{task}/solver/evals'].current() == 6


def test_test(make):
    runner = make(
        test_dataloader=loaders(shuffle=False, classes=4, pixels=2),
        test_cfg=dict(type='MultiTaskTestLoop'),
        test_evaluator=EVALUATORS,
    )
    assert set(runner.test()) == set(make().val())


def test_resumed_run_equals_a_whole_one(make, tmp_path):
    """With the hooks of this project, and an average of the weights."""
    no_val = dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator'))
    whole = make(default_hooks=HOOKS, work_dir=str(tmp_path / 'whole'), **no_val)
    whole.train()
    scalars = whole.message_hub.log_scalars
    assert {'train/loss_jacobian', 'train/loss_trajectory'} <= set(scalars)
    assert scalars['train/forward_evals'].current() == 6
    assert isinstance(whole.model.backbone.equilibrium.mode, Equilibrium)

    path = tmp_path / 'whole/iter_2.pth'
    assert check_training_checkpoint(path).iteration == 2
    settings = dict(work_dir=str(tmp_path / 'resumed'), **no_val)
    make(default_hooks=HOOKS, resume=True, load_from=str(path), **settings).train()
    expected, actual = (
        torch.load(tmp_path / folder / 'iter_4.pth', weights_only=False)
        for folder in ('whole', 'resumed')
    )
    assert expected['random_states']
    for part in ('state_dict', 'ema_state_dict'):
        assert expected[part].keys() == actual[part].keys()
        for name, value in expected[part].items():
            assert torch.equal(actual[part][name], value), name


class TestLoaders:
    def test_jointly(self, make):
        """Each task begins its data anew, in an order of its own."""
        loop = make().train_loop
        joint = loop.dataloader
        assert isinstance(joint, JointLoader)
        assert len(joint) == 3  # batches of pixels; there are 2 of classes
        seen = {task: [] for task in EVALUATORS}
        for batch in islice(joint, 6):
            for task, data in batch.items():
                seen[task].append([s.index for s in data['data_samples']])
        assert [len(indices) for indices in seen['classes']] == [4, 2] * 3
        assert [len(indices) for indices in seen['pixels']] == [2] * 6
        epochs = [seen['classes'][i] + seen['classes'][i + 1] for i in (0, 2, 4)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(6))
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_batch_sampler_of_a_config(self, make):
        """Its sampler shuffles anew, too."""
        settings = loaders(classes=4, pixels=2)
        settings['classes']['batch_sampler'] = dict(type=BatchSampler, drop_last=True)
        joint = make(train_dataloader=settings).train_loop.dataloader
        batches = [
            [sample.index for sample in batch['classes']['data_samples']]
            for batch in islice(joint, 4)
        ]
        assert len({tuple(batch) for batch in batches}) > 1

    def test_in_turn(self, make):
        loader = make().val_loop.dataloader
        assert isinstance(loader, SequentialLoader)
        assert [list(batch) for batch in loader] == [['classes']] * 2 + [['pixels']] * 3
        assert len(loader) == 5


class TestErrors:
    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            (
                dict(train_dataloader=loaders(classes=4)['classes']),
                'train_dataloader must be a dict with a data loader per task',
            ),
            (dict(train_dataloader=loaders(classes=4)), 'it lacks pixels'),
            (
                dict(
                    train_dataloader=dict(
                        loaders(pixels=2),
                        classes=dict(loaders(classes=8)['classes'], drop_last=True),
                    )
                ),
                'must have a batch to train on, classes has none',
            ),
            (
                dict(train_dataloader=loaders(classes=4, boxes=2)),
                'tasks of the model, classes, pixels, got classes, boxes',
            ),
            (
                dict(val_dataloader=loaders(boxes=2)),
                'val_dataloader must have tasks of the model, classes, pixels, got',
            ),
            (
                dict(val_evaluator=EVALUATORS['classes']),
                'val_evaluator must be a dict with metrics per task .*classes, pixels',
            ),
            (dict(model=dict(type='Classifier')), 'needs a MultiTaskModel, got'),
        ],
    )
    def test_before_training(self, make, settings, message):
        with pytest.raises((TypeError, ValueError), match=message):
            make(**settings).train()
