"""Interrupted training ends where uninterrupted training does."""

import signal
import subprocess
import sys
import time

import torch

BASE = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
# Dropout and random augmentation on; the interruption falls into the shallow phase and
# what is resumed goes on to the equilibrium.
TEXT = """
model = dict(
    data_preprocessor=dict(size=(48, 48)),
    backbone=dict(dropout=0.2),
    decode_head=dict(dropout_ratio=0.1),
)
train_dataloader = dict(
    batch_size=2,
    num_workers={workers},
    persistent_workers={persistent},
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(48, 48)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ]
    ),
)
val_dataloader = dict(dataset=dict(indices=8))
train_cfg = dict(max_iters=12, val_interval=4)
custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters=6),
    dict(type='RandomStateHook'),
]
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))
"""


def state_of(path):
    return torch.load(path, map_location='cpu')['state_dict']


def test_killed_and_resumed(run, root, environment, config, workplace, tmp_path):
    path = config(BASE, TEXT.format(workers=2, persistent=True))
    run('train.py', path, '--work-dir', tmp_path / 'whole', cwd=workplace)
    expected = state_of(tmp_path / 'whole/iter_12.pth')

    killed = tmp_path / 'killed'
    command = [sys.executable, root / 'tools/train.py', path, '--work-dir', killed]
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            command, cwd=workplace, env=environment, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 300
    while not (killed / 'last_checkpoint').exists():
        assert process.poll() is None, (tmp_path / 'log').read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / 'iter_12.pth').exists()

    output = run('train.py', path, '--work-dir', killed, '--resume', cwd=workplace)
    assert 'resumed epoch: 0, iter: 4' in output
    actual = state_of(killed / 'iter_12.pth')
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_resumed_in_the_main_process(run, config, workplace, tmp_path):
    """Without workers, augmentation and dropout share the generators."""
    path = config(BASE, TEXT.format(workers=0, persistent=False))
    run('train.py', path, '--work-dir', tmp_path / 'whole', cwd=workplace)
    checkpoint = tmp_path / 'whole/iter_8.pth'
    work_dir = tmp_path / 'resumed'
    run('train.py', path, '--work-dir', work_dir, '--resume', checkpoint, cwd=workplace)
    expected = state_of(tmp_path / 'whole/iter_12.pth')
    actual = state_of(work_dir / 'iter_12.pth')
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
