"""Two processes on CPU, started by the shell scripts."""

import socket
import subprocess

import pytest
import torch
from mmengine.utils import digit_version

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


ONE_RANK_AT_ONCE = """
import os
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mdeq_mm.deq import EquilibriumLayer


@HOOKS.register_module()
class OneRankAtOnce(Hook):
    def before_train(self, runner):
        for module in runner.model.modules():
            if isinstance(module, EquilibriumLayer) and get_rank() == 1:
                module.solver.tol = 1e9
                if hasattr(module.gradient, 'solver'):
                    module.gradient.solver.tol = 1e9

    def after_train(self, runner):
        state = runner.model.module.state_dict()
        torch.save(state, Path(runner.work_dir, f'rank_{get_rank()}.pth'))
"""
FINEST_ALONE = """
custom_imports = dict(imports=['one_rank_at_once', 'mdeq_mm'])
model = dict(
    backbone=dict(out_indices=(0,), gradient={gradient}),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(in_channels=24),
)
custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters={pretrain_iters}),
    # At the state zero, where one rank stops, the norms make the Jacobian enormous.
    dict(
        type='JacobianRegularizationHook',
        weight=1e-6,
        pretrain_weight=1e-6,
        freq=0.5,
    ),
    dict(type='OneRankAtOnce'),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
"""
IMPLICIT = "dict(type='ImplicitGradient')"
PHANTOM = "dict(_delete_=True, type='PhantomGradient', steps={steps})"


@pytest.mark.parametrize(
    ('gradient', 'pretrain_iters'),
    [
        pytest.param(IMPLICIT, 0, id='implicit'),
        pytest.param(PHANTOM.format(steps=2), 0, id='phantom'),
        pytest.param(PHANTOM.format(steps=1), 0, id='jacobian-free'),
        pytest.param(IMPLICIT, 100, id='shallow'),
    ],
)
def test_ranks_with_unequal_work(
    run, config, workplace, tmp_path, gradient, pretrain_iters
):
    """A head on the finest branch alone, and a rank whose solves end at once."""
    (tmp_path / 'one_rank_at_once.py').write_text(ONE_RANK_AT_ONCE)
    settings = dict(
        DEFAULTS, iters=5, batch_size=4, pretrain_iters=0, diff_rank_seed=True
    )
    text = FINEST_ALONE.format(gradient=gradient, pretrain_iters=pretrain_iters)
    # The neck of the other tests is replaced as a whole.
    base = TEXT.format(**settings).split('    neck=[')[0] + ')\n'
    base += 'train_dataloader' + TEXT.format(**settings).split('train_dataloader')[1]
    path = config(BASE, base + text)
    run(
        *('dist_train.sh', path, 2, '--work-dir', tmp_path / 'run'),
        cwd=workplace,
        timeout=180,
        PORT=free_port(),
        PYTHONPATH=str(tmp_path),
    )
    first, second = (torch.load(tmp_path / f'run/rank_{rank}.pth') for rank in (0, 1))
    assert first.keys() == second.keys()
    for name in first:
        if 'running_' not in name:
            assert first[name].isfinite().all(), name
            assert torch.equal(first[name], second[name]), name


SHARDED_ON_CPU = """
import torch
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class ShardedOnCpu(MMFullyShardedDataParallel):
    # The strategy asks for a GPU.
    def __init__(self, *args, device_id, **kwargs):
        super().__init__(*args, device_id=torch.device('cpu'), **kwargs)
"""
FLEXIBLE = """
custom_imports = dict(imports=['sharded_on_cpu', 'one_rank_at_once', 'mdeq_mm'])
runner_type = 'FlexibleRunner'
strategy = dict(type={strategy!r}, model_wrapper=dict({wrapper}))
custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters=2),
    dict(type='OneRankAtOnce'),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
# torch cannot gather a state dict on CPU.
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=100, save_last=False),
    logger=dict(interval=1),
)
"""
STRATEGIES = {
    'DDPStrategy': "type='MMDistributedDataParallel', device_ids=None",
    'FSDPStrategy': "type='ShardedOnCpu', use_orig_params=True",
}


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='FSDP of this torch does not run on CPU',
)
def test_sharded_parameters(run, config, workplace, tmp_path, scalars):
    """FSDP around the whole model trains as DDP does, also with unequal work."""
    (tmp_path / 'sharded_on_cpu.py').write_text(SHARDED_ON_CPU)
    (tmp_path / 'one_rank_at_once.py').write_text(
        ONE_RANK_AT_ONCE.split('    def after_train(')[0]
    )
    losses = {}
    for strategy, wrapper in STRATEGIES.items():
        text = TEXT.format(batch_size=4, **dict(DEFAULTS, iters=5))
        text += FLEXIBLE.format(strategy=strategy, wrapper=wrapper)
        work_dir = tmp_path / strategy
        run(
            *('dist_train.sh', config(BASE, text), 2, '--work-dir', work_dir),
            cwd=workplace,
            timeout=180,
            PORT=free_port(),
            PYTHONPATH=str(tmp_path),
        )
        losses[strategy] = [
            line['loss'] for line in scalars(work_dir) if 'loss' in line
        ]
    assert len(losses['DDPStrategy']) == 5
    assert losses['FSDPStrategy'] == pytest.approx(losses['DDPStrategy'], rel=1e-4)


def test_two_nodes(run, root, environment, config, workplace, tmp_path):
    """Two launchers that only meet at a port, as on two machines."""
    path = config(BASE, TEXT.format(batch_size=4, **DEFAULTS))
    port = free_port()
    command = ['bash', root / 'tools/dist_train.sh', path, '1', '--work-dir']
    nodes = []
    for rank in (0, 1):
        variables = dict(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1')
        nodes.append(
            subprocess.Popen(
                [*map(str, command), str(tmp_path / f'node_{rank}')],
                cwd=workplace,
                env={**environment, **variables, 'PORT': port},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [node.communicate(timeout=180)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:]
    assert (tmp_path / 'node_0/iter_3.pth').exists()
    assert not (tmp_path / 'node_1/iter_3.pth').exists()


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
