"""The official CIFAR-10 recipe on the stock data set, cut short."""

import pytest
import torch

from ..isolation import NO_WORKERS

pytestmark = pytest.mark.slow
CONFIG = 'classification/mdeq-tiny_2xb64_cifar10.py'


def test_train_and_evaluate(run_tool, root, cifar10, tmp_path, scalars):
    config = root / 'configs' / CONFIG
    work_dir = tmp_path / 'run'
    run_tool(
        'train.py',
        config,
        *('--work-dir', work_dir, *NO_WORKERS),
        'train_dataloader.batch_size=8',
        'train_dataloader.dataset.indices=48',
        'val_dataloader.dataset.indices=16',
        'train_cfg.max_epochs=2',
        'param_scheduler.T_max=2',
        'default_hooks.equilibrium.pretrain_iters=6',
        'default_hooks.logger.interval=3',
        'randomness.seed=0',
        cwd=cifar10,
    )
    losses = [r for r in scalars(work_dir) if 'loss' in r]
    assert losses[-1]['loss'] < losses[0]['loss']
    assert 'forward_residual' not in losses[1]
    assert 'forward_residual' in losses[-1]
    output = run_tool(
        'test.py',
        *(config, work_dir / 'epoch_2.pth', '--work-dir', tmp_path / 'test'),
        *(*NO_WORKERS, 'test_dataloader.dataset.indices=16'),
        cwd=cifar10,
    )
    assert 'accuracy/top1' in output


# The regularised schedule in miniature: 6 unrolled iterations, 6 at the equilibrium.
MINIATURE = """
model = dict(
    backbone=dict(
        num_layers=3,
        forward_solver=dict(max_evals=6),
        gradient=dict(solver=dict(max_evals=5)),
    )
)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=12)
train_dataloader = dict(
    batch_size=4, sampler=dict(type='InfiniteSampler', shuffle=True)
)
val_cfg, val_dataloader, val_evaluator = None, None, None
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
    logger=dict(interval=1),
    equilibrium=dict(pretrain_iters=6),
    jacobian=dict(
        type='JacobianRegularizationHook',
        weight=0.4,
        freq=0.6,
        pretrain_weight=0.03,
        max_evals_delta=2,
    ),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


def test_regularised_schedule_is_resumed(
    run_process,
    killed_training,
    config,
    cifar10,
    tmp_path,
    scalars,
    state_of,
):
    path = config(CONFIG, MINIATURE)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    run_process('train.py', path, '--work-dir', whole, cwd=cifar10)
    records = [record for record in scalars(whole) if 'loss' in record]
    assert len(records) == 12
    assert not any('forward_residual' in record for record in records[:6])
    assert all('forward_residual' in record for record in records[6:])
    assert any('loss_jacobian' in record for record in records[:6])

    killed_training(path, killed, 'iter_9', cifar10)
    output = run_process(
        'train.py', path, '--work-dir', killed, '--resume', cwd=cifar10
    )
    assert 'resumed epoch: 0, iter: 9' in output
    expected, actual = (state_of(folder / 'iter_12.pth') for folder in (whole, killed))
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
