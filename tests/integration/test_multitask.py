"""One model of two tasks: killed and resumed, and in two processes."""

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.versions]
BASE = 'multitask/mdeq-micro_1xb64-1xb8-1200_digits-digit-scenes.py'
TEXT = """
model = dict(
    backbone=dict(
        dropout={dropout},
        num_layers=2,
        forward_solver=dict(max_evals=5),
        gradient=dict(solver=dict(max_evals=4)),
    ),
    tasks=dict(scenes=dict(data_preprocessor=dict(size=(32, 32)))),
)
train_dataloader = dict(
    # So few that they are used up again and again.
    digits=dict(
        batch_size={digits},
        num_workers={workers},
        persistent_workers={persistent},
        dataset=dict(indices=16),
    ),
    scenes=dict(
        batch_size={scenes},
        num_workers={workers},
        persistent_workers={persistent},
        dataset=dict(
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                *{augmentation},
                dict(type='Resize', scale=(32, 32)),
                dict(type='PackSegInputs'),
            ]
        ),
    ),
)
val_dataloader = dict(
    digits=dict(batch_size=2, num_workers=0, dataset=dict(indices=5)),
    scenes=dict(
        batch_size=1,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(indices=3),
    ),
)
train_cfg = dict(max_iters={iters}, val_interval={iters})
default_hooks = dict(
    equilibrium=dict(pretrain_iters={pretrain_iters}),
    checkpoint=dict(interval=2, save_best='scenes/mIoU', rule='greater'),
    logger=dict(interval=1),
)
"""
METRICS = {'digits/accuracy/top1', 'scenes/mIoU', 'scenes/mAcc', 'scenes/aAcc'}


def text(extra='', **settings):
    defaults = dict(
        dropout=0.2,
        digits=6,
        scenes=2,
        workers=0,
        persistent=False,
        iters=6,
        pretrain_iters=3,
        augmentation=[
            dict(type='RandomCrop', crop_size=(48, 48)),
            dict(type='PhotoMetricDistortion'),
        ],
    )
    return TEXT.format(**{**defaults, **settings}) + extra


def test_killed_and_resumed(
    run_process, run_tool, killed_training, config, workplace, tmp_path, state_of
):
    path = config(BASE, text(workers=1, persistent=True))
    run_tool('train.py', path, '--work-dir', tmp_path / 'whole', cwd=workplace)
    expected = state_of(tmp_path / 'whole/iter_6.pth')

    killed = tmp_path / 'killed'
    killed_training(path, killed, 'iter_2', workplace)
    assert not (killed / 'iter_6.pth').exists()
    output = run_process(
        'train.py', path, '--work-dir', killed, '--resume', cwd=workplace
    )
    assert 'resumed epoch: 0, iter: ' in output
    assert list(killed.glob('best_scenes_mIoU_iter_6.pth'))
    actual = state_of(killed / 'iter_6.pth')
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


# Batch norm would see half a batch in each of two processes, and so would the loss with
# weights of classes: it divides by the weights of its pixels.
IN_FLOAT64 = """
custom_imports = dict(imports=['in_float64', 'mdeq_mm'])
norm_cfg = dict(_delete_=True, type='GN', num_groups=4)
model['backbone']['norm_cfg'] = norm_cfg
model['tasks']['scenes']['decode_head'] = dict(
    norm_cfg=norm_cfg, loss_decode=dict(class_weight=None)
)
model['tasks']['digits'] = dict(
    data_preprocessor=dict(mean=[78.0] * 3, std=[96.0] * 3),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(16, 32, 64),
            head_channels=(8, 16, 32),
            out_channels=200,
            norm_cfg=dict(type='GN', num_groups=4),
        ),
        dict(type='GlobalAveragePooling'),
    ],
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=1e-3, momentum=0.9)
)
"""


def test_two_processes_equal_one(
    run_tool, two_processes, config, workplace, tmp_path, state_of, scalars
):
    """The same global batches give the same parameters and metrics, in float64."""
    (tmp_path / 'in_float64.py').write_text(
        'import torch\ntorch.set_default_dtype(torch.float64)\n'
    )
    states, metrics = [], []
    for run, n_processes in ((run_tool, 1), (two_processes, 2)):
        sizes = dict(digits=8 // n_processes, scenes=4 // n_processes)
        settings = dict(dropout=0.0, iters=4, pretrain_iters=2, augmentation=[])
        path = config(BASE, text(IN_FLOAT64, **sizes, **settings))
        work_dir = tmp_path / str(n_processes)
        run(
            *('train.py', path, '--work-dir', work_dir),
            cwd=workplace,
            modules=tmp_path,
        )
        states.append(state_of(work_dir / 'iter_4.pth'))
        metrics.append({name: scalars(work_dir)[-1][name] for name in METRICS})
    expected, actual = states
    assert expected.keys() == actual.keys()
    for name in expected:
        assert expected[name].dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-9)
    assert metrics[0] == pytest.approx(metrics[1], nan_ok=True)
