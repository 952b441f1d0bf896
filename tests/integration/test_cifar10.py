"""The official CIFAR-10 recipe on the stock data set, cut short."""

import lzma
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

CONFIG = 'classification/mdeq-tiny_2xb64_cifar10.py'


@pytest.fixture(scope='module')
def cifar10(shared, tmp_path_factory):
    """A folder with the data under ``data/cifar10``, as torchvision unpacks it."""
    workplace = tmp_path_factory.mktemp('cifar10')
    batches = workplace / 'data/cifar10/cifar-10-batches-py'
    batches.mkdir(parents=True)
    for path in (shared / 'data/cifar10/cifar-10-batches-py').iterdir():
        if path.suffix == '.xz':
            with lzma.open(path) as source, (batches / path.stem).open('wb') as target:
                shutil.copyfileobj(source, target)
        else:
            shutil.copy(path, batches)
    return workplace


@pytest.mark.slow
def test_train_and_evaluate(run, root, cifar10, tmp_path, scalars):
    config = root / 'configs' / CONFIG
    work_dir = tmp_path / 'run'
    run(
        'train.py',
        config,
        *('--work-dir', work_dir, '--cfg-options'),
        'train_dataloader.batch_size=16',
        'train_dataloader.dataset.indices=160',
        'val_dataloader.dataset.indices=64',
        'train_cfg.max_epochs=2',
        'param_scheduler.T_max=2',
        'custom_hooks.0.pretrain_iters=10',
        'default_hooks.logger.interval=5',
        'randomness.seed=0',
        cwd=cifar10,
    )
    losses = [r for r in scalars(work_dir) if 'loss' in r]
    assert losses[-1]['loss'] < losses[0]['loss']
    assert 'forward_evals' not in losses[1]
    assert 'forward_evals' in losses[-1]
    output = run(
        'test.py',
        *(config, work_dir / 'epoch_2.pth', '--work-dir', tmp_path / 'test'),
        *('--cfg-options', 'test_dataloader.dataset.indices=64'),
        cwd=cifar10,
    )
    assert 'accuracy/top1' in output


# The regularised schedule in miniature: 20 shallow iterations, 20 at the equilibrium.
MINIATURE = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=40)
train_dataloader = dict(
    batch_size=8, sampler=dict(type='InfiniteSampler', shuffle=True)
)
val_cfg, val_dataloader, val_evaluator = None, None, None
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5),
    logger=dict(interval=1),
)
log_processor = dict(by_epoch=False)
custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters=20),
    dict(
        type='JacobianRegularizationHook',
        weight=0.4,
        freq=0.6,
        pretrain_weight=0.03,
        max_evals_delta=2,
    ),
    dict(type='RandomStateHook'),
]
randomness = dict(seed=0)
"""


@pytest.mark.slow
def test_regularised_schedule_is_resumed(
    run, root, environment, config, cifar10, tmp_path, scalars
):
    path = config(CONFIG, MINIATURE)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    run('train.py', path, '--work-dir', whole, cwd=cifar10)
    records = [record for record in scalars(whole) if 'loss' in record]
    assert len(records) == 40
    assert not any('forward_evals' in record for record in records[:20])
    assert all('forward_evals' in record for record in records[20:])
    assert 'loss_jacobian' in records[19]

    command = [sys.executable, root / 'tools/train.py', path, '--work-dir', killed]
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            command, cwd=cifar10, env=environment, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 300
    last = killed / 'last_checkpoint'
    while not (last.exists() and 'iter_25' in last.read_text()):
        assert process.poll() is None, (tmp_path / 'log').read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    output = run('train.py', path, '--work-dir', killed, '--resume', cwd=cifar10)
    assert 'resumed epoch: 0, iter: 25' in output
    expected, actual = (
        torch.load(folder / 'iter_40.pth', map_location='cpu')['state_dict']
        for folder in (whole, killed)
    )
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
