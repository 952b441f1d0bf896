"""Interrupted training ends where uninterrupted training does."""

import pytest
import torch

pytestmark = pytest.mark.versions
BASE = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
# Dropout and random augmentation on; the interruption falls into the unrolled
# iterations and what is resumed goes on to the equilibrium.
TEXT = """
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(dropout=0.2, forward_solver=dict(max_evals=8)),
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
            dict(type='RandomCrop', crop_size=(32, 32)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ]
    ),
)
val_dataloader = dict(
    num_workers={workers}, persistent_workers={persistent}, dataset=dict(indices=4)
)
train_cfg = dict(max_iters=3 * {interval}, val_interval={interval})
default_hooks = dict(
    equilibrium=dict(pretrain_iters=3 * {interval} // 2),
    checkpoint=dict(interval={interval}),
    logger=dict(interval=1),
)
"""


@pytest.mark.slow
def test_killed_and_resumed(
    run_process, run_tool, killed_training, config, workplace, tmp_path, state_of
):
    path = config(BASE, TEXT.format(workers=2, persistent=True, interval=4))
    run_tool('train.py', path, '--work-dir', tmp_path / 'whole', cwd=workplace)
    expected = state_of(tmp_path / 'whole/iter_12.pth')

    killed = tmp_path / 'killed'
    killed_training(path, killed, 'iter_4', workplace)
    assert not (killed / 'iter_12.pth').exists()
    output = run_process(
        'train.py', path, '--work-dir', killed, '--resume', cwd=workplace
    )
    assert 'resumed epoch: 0, iter: 4' in output
    actual = state_of(killed / 'iter_12.pth')
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_resumed_in_the_main_process(run_tool, config, workplace, tmp_path, state_of):
    """Without workers, augmentation and dropout share the generators."""
    path = config(BASE, TEXT.format(workers=0, persistent=False, interval=2))
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run_tool('train.py', path, '--work-dir', whole, cwd=workplace)
    run_tool(
        *('train.py', path, '--work-dir', resumed, '--resume', whole / 'iter_2.pth'),
        cwd=workplace,
    )
    expected, actual = (state_of(folder / 'iter_6.pth') for folder in (whole, resumed))
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
