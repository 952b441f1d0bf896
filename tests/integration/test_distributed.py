"""Two processes on CPU, started by the shell scripts."""

import socket

import pytest
import torch

BASE = 'classification/mdeq-tiny_1xb64_digits.py'
# Batch norm would see half a batch in each of two processes.
TEXT = """
norm_cfg = dict(type='GN', num_groups=4)
model = dict(
    backbone=dict(dropout={dropout}, num_layers=3, norm_cfg=norm_cfg),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(24, 24),
            head_channels=(8, 16),
            out_channels=200,
            norm_cfg=norm_cfg,
        ),
        dict(type='GlobalAveragePooling'),
    ],
)
train_dataloader = dict(
    batch_size={batch_size}, sampler=dict(_delete_=True, type='InfiniteSampler')
)
val_dataloader = dict(dataset=dict(indices=64))
test_dataloader = dict(dataset=dict(indices=64))
train_cfg = dict(_delete_=True, by_epoch=False, max_iters={iters}, val_interval=100)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9)
)
param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1, by_epoch=False)
custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters={pretrain_iters}),
    dict(type='RandomStateHook'),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=3), logger=dict(interval=1)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0, diff_rank_seed={diff_rank_seed})
"""
DEFAULTS = dict(dropout=0.0, iters=3, pretrain_iters=0, diff_rank_seed=False)


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return str(listener.getsockname()[1])


def state_of(path):
    return torch.load(path, map_location='cpu')['state_dict']


@pytest.mark.parametrize('pretrain_iters', [100, 0], ids=['shallow', 'equilibrium'])
def test_two_processes_equal_one(run, config, workplace, tmp_path, pretrain_iters):
    """The same global batch gives the same parameters, in float64."""
    settings = dict(DEFAULTS, pretrain_iters=pretrain_iters)
    (tmp_path / 'in_float64.py').write_text(
        'import torch\ntorch.set_default_dtype(torch.float64)\n'
    )
    in_float64 = """
custom_imports = dict(imports=['in_float64', 'mdeq_mm'])
data_preprocessor = dict(mean=[78.0] * 3, std=[96.0] * 3)
"""
    path_of = dict(PYTHONPATH=str(tmp_path))
    single = tmp_path / 'single'
    path = config(BASE, TEXT.format(batch_size=16, **settings) + in_float64)
    run('train.py', path, '--work-dir', single, cwd=workplace, **path_of)
    double = tmp_path / 'double'
    path = config(BASE, TEXT.format(batch_size=8, **settings) + in_float64)
    run(
        *('dist_train.sh', path, 2, '--work-dir', double),
        cwd=workplace,
        PORT=free_port(),
        **path_of,
    )
    expected, actual = (state_of(folder / 'iter_3.pth') for folder in (single, double))
    assert expected.keys() == actual.keys()
    for name in expected:
        assert expected[name].dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-9)
    # Evaluation in two processes counts every image once.
    checkpoint = double / 'iter_3.pth'
    one = run(
        *('test.py', path, checkpoint, '--work-dir', tmp_path / 'a'),
        cwd=workplace,
        **path_of,
    )
    two = run(
        *('dist_test.sh', path, checkpoint, 2, '--work-dir', tmp_path / 'b'),
        cwd=workplace,
        PORT=free_port(),
        **path_of,
    )
    accuracy = [text.split('accuracy/top1: ')[1].split()[0] for text in (one, two)]
    assert accuracy[0] == accuracy[1]


def test_resumed_with_two_processes(run, config, workplace, tmp_path):
    """Each process draws dropout masks of its own and goes on where it was."""
    settings = dict(
        DEFAULTS, iters=6, pretrain_iters=4, dropout=0.3, diff_rank_seed=True
    )
    path = config(BASE, TEXT.format(batch_size=8, **settings))
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run(
        *('dist_train.sh', path, 2, '--work-dir', whole),
        cwd=workplace,
        PORT=free_port(),
    )
    checkpoint = torch.load(whole / 'iter_3.pth', weights_only=False)
    first, second = checkpoint['random_states']
    assert not torch.equal(first['torch'], second['torch'])
    run(
        *('dist_train.sh', path, 2, '--work-dir', resumed),
        *('--resume', whole / 'iter_3.pth'),
        cwd=workplace,
        PORT=free_port(),
    )
    expected, actual = (state_of(folder / 'iter_6.pth') for folder in (whole, resumed))
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_other_launchers_need_a_gpu(run, root, workplace, tmp_path):
    output = run(
        'train.py',
        root / 'configs' / BASE,
        *('--launcher', 'slurm', '--work-dir', tmp_path / 'run'),
        cwd=workplace,
        check=False,
    )
    if not torch.cuda.is_available():
        assert "launcher must be 'none' or 'pytorch', got 'slurm'" in output
        assert not (tmp_path / 'run').exists()
