"""Two processes on CPU. All but the launchers are started once and shared."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.utils import digit_version

from ..isolation import started
from ..two_processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.versions]

BASE = 'classification/mdeq-tiny_1xb64_digits.py'
TEXT = """
norm_cfg = dict(type='GN', num_groups=4)
model = dict(
    backbone=dict(
        dropout={dropout},
        num_layers=3,
        norm_cfg=norm_cfg,
        forward_solver=dict(max_evals=6),
        gradient=dict(solver=dict(max_evals=5)),
    ),
{model}
)
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size={batch_size},
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    **workers,
)
val_dataloader = dict(dataset=dict(indices=64), **workers)
test_dataloader = dict(dataset=dict(indices=64), **workers)
train_cfg = dict(_delete_=True, by_epoch=False, max_iters={iters}, val_interval=100)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.05, momentum=0.9)
)
param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1, by_epoch=False)
default_hooks = dict(
    equilibrium=dict(pretrain_iters={pretrain_iters}),
    checkpoint=dict(by_epoch=False, interval=3),
    logger=dict(interval=1),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0, diff_rank_seed={diff_rank_seed})
"""
# Batch norm would see half a batch in each of two processes.
GROUP_NORM = """
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
"""
DEFAULTS = dict(
    model=GROUP_NORM,
    dropout=0.0,
    iters=3,
    batch_size=8,
    pretrain_iters=0,
    diff_rank_seed=False,
)


def text(extra='', **settings):
    return TEXT.format(**{**DEFAULTS, **settings}) + extra


IN_FLOAT64 = """
custom_imports = dict(imports=['in_float64', 'mdeq_mm'])
data_preprocessor = dict(mean=[78.0] * 3, std=[96.0] * 3)
"""


@pytest.mark.parametrize('pretrain_iters', [100, 0], ids=['unrolled', 'equilibrium'])
def test_two_processes_equal_one(
    run_tool, two_processes, config, workplace, tmp_path, state_of, pretrain_iters
):
    """The same global batch gives the same parameters, in float64."""
    (tmp_path / 'in_float64.py').write_text(
        'import torch\ntorch.set_default_dtype(torch.float64)\n'
    )
    states = []
    for run, batch_size in ((run_tool, 16), (two_processes, 8)):
        settings = dict(batch_size=batch_size, pretrain_iters=pretrain_iters)
        path = config(BASE, text(IN_FLOAT64, **settings))
        work_dir = tmp_path / str(batch_size)
        run(
            *('train.py', path, '--work-dir', work_dir),
            cwd=workplace,
            modules=tmp_path,
        )
        states.append(state_of(work_dir / 'iter_3.pth'))
    expected, actual = states
    assert expected.keys() == actual.keys()
    for name in expected:
        assert expected[name].dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-9)


def test_resumed_with_two_processes(
    two_processes, config, workplace, tmp_path, state_of
):
    """Each process draws dropout masks of its own and goes on where it was."""
    settings = dict(iters=6, pretrain_iters=4, dropout=0.3, diff_rank_seed=True)
    path = config(BASE, text(**settings))
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    two_processes('train.py', path, '--work-dir', whole, cwd=workplace)
    checkpoint = whole / 'iter_3.pth'
    first, second = torch.load(checkpoint, weights_only=False)['random_states']
    assert not torch.equal(first['torch'], second['torch'])
    two_processes(
        *('train.py', path, '--work-dir', resumed, '--resume', checkpoint),
        cwd=workplace,
    )
    expected, actual = (state_of(folder / 'iter_6.pth') for folder in (whole, resumed))
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize('damage', ['truncated', 'last_checkpoint'])
def test_resumed_after_a_power_cut(
    two_processes, config, workplace, tmp_path, state_of, damage
):
    """Both take the same whole checkpoint, and one of them writes."""
    path = config(BASE, text(batch_size=4, iters=9, pretrain_iters=100))
    work_dir = tmp_path / 'run'
    arguments = ('train.py', path, '--work-dir', work_dir)
    two_processes(*arguments, cwd=workplace)
    expected = state_of(work_dir / 'iter_9.pth')
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_9.pth')
    torn = work_dir / 'iter_9.pth'
    torn.write_bytes(torn.read_bytes()[:-1000])
    if damage == 'last_checkpoint':
        torn.unlink()
        (work_dir / 'last_checkpoint').write_text('')
    two_processes(*arguments, '--resume', cwd=workplace)
    log = max(work_dir.glob('*/*.log')).read_text()
    assert f'resuming from {work_dir}/iter_6.pth' in log
    assert 'resumed epoch: 0, iter: 6' in log
    actual = state_of(work_dir / 'iter_9.pth')
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    assert not (work_dir / '.unfinished').exists()


ONE_RANK_AT_ONCE = """
import copy
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mdeq_mm.deq import equilibrium_layers


@HOOKS.register_module(force=True)
class OneRankAtOnce(Hook):
    def __init__(self, save=True):
        self.save = save
        self.settings = ExitStack()

    def before_train(self, runner):
        if get_rank() != 1:
            return
        for layer in equilibrium_layers(runner.model):
            solver, gradient = layer.configured.solver, layer.configured.gradient
            gradient = copy.copy(gradient)
            if hasattr(gradient, 'solver'):
                gradient.solver = replace(gradient.solver, tol=1e9)
            settings = layer.using(solver=replace(solver, tol=1e9), gradient=gradient)
            self.settings.enter_context(settings)

    def after_train(self, runner):
        self.settings.close()
        if self.save:
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
default_hooks = dict(
    # At the state zero, where one rank stops, the norms make the Jacobian enormous.
    jacobian=dict(
        type='JacobianRegularizationHook',
        weight=1e-6,
        pretrain_weight=1e-6,
        freq=0.5,
    ),
    one_rank_at_once=dict(type='OneRankAtOnce'),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
"""
IMPLICIT = "dict(type='ImplicitGradient')"
PHANTOM = "dict(_delete_=True, type='PhantomGradient', steps={steps})"


@pytest.fixture
def one_rank_at_once(tmp_path):
    """A folder with a hook that lets the solves of the second process end at once."""
    (tmp_path / 'one_rank_at_once.py').write_text(ONE_RANK_AT_ONCE)
    return tmp_path


@pytest.fixture
def derived(tmp_path):
    """Writes a config that inherits from another file, for settings to be merged."""

    def write(base, text):
        path = tmp_path / 'derived.py'
        path.write_text(f'_base_ = [{str(base)!r}]\n{text}')
        return path

    return write


@pytest.mark.parametrize(
    ('gradient', 'pretrain_iters'),
    [
        pytest.param(IMPLICIT, 0, id='implicit'),
        pytest.param(PHANTOM.format(steps=2), 0, id='phantom'),
        pytest.param(PHANTOM.format(steps=1), 0, id='jacobian-free'),
        pytest.param(IMPLICIT, 100, id='unrolled'),
    ],
)
def test_ranks_with_unequal_work(
    two_processes,
    config,
    derived,
    workplace,
    one_rank_at_once,
    gradient,
    pretrain_iters,
):
    """A head on the finest branch alone, and a rank whose solves end at once."""
    settings = dict(
        iters=5, batch_size=4, pretrain_iters=pretrain_iters, diff_rank_seed=True
    )
    base = config(BASE, text(model='', **settings))
    path = derived(base, FINEST_ALONE.format(gradient=gradient))
    work_dir = one_rank_at_once / 'run'
    two_processes(
        *('train.py', path, '--work-dir', work_dir),
        cwd=workplace,
        modules=one_rank_at_once,
    )
    first, second = (torch.load(work_dir / f'rank_{rank}.pth') for rank in (0, 1))
    assert first.keys() == second.keys()
    for name in first:
        if 'running_' not in name:
            assert first[name].isfinite().all(), name
            assert torch.equal(first[name], second[name]), name


SHARDED_ON_CPU = """
import torch
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module(force=True)
class ShardedOnCpu(MMFullyShardedDataParallel):
    # The strategy asks for a GPU.
    def __init__(self, *args, device_id, **kwargs):
        super().__init__(*args, device_id=torch.device('cpu'), **kwargs)
"""
FLEXIBLE = """
custom_imports = dict(imports=['sharded_on_cpu', 'one_rank_at_once', 'mdeq_mm'])
runner_type = 'FlexibleRunner'
strategy = dict(type={strategy!r}, model_wrapper=dict({wrapper}))
default_hooks = dict(
    one_rank_at_once=dict(type='OneRankAtOnce', save=False),
    # torch cannot gather a state dict on CPU.
    checkpoint=dict(interval=100, save_last=False),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
"""
STRATEGIES = {
    'DDPStrategy': "type='MMDistributedDataParallel', device_ids=None",
    'FSDPStrategy': "type='ShardedOnCpu', use_orig_params=True",
}


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='FSDP of this torch does not run on CPU',
)
def test_sharded_parameters(
    two_processes, config, derived, workplace, one_rank_at_once, scalars
):
    """FSDP around the whole model trains as DDP does, also with unequal work."""
    (one_rank_at_once / 'sharded_on_cpu.py').write_text(SHARDED_ON_CPU)
    base = config(BASE, text(batch_size=4, iters=5, pretrain_iters=2))
    losses = {}
    for strategy, wrapper in STRATEGIES.items():
        path = derived(base, FLEXIBLE.format(strategy=strategy, wrapper=wrapper))
        work_dir = one_rank_at_once / strategy
        two_processes(
            *('train.py', path, '--work-dir', work_dir),
            cwd=workplace,
            modules=one_rank_at_once,
        )
        records = scalars(work_dir)
        losses[strategy] = [line['loss'] for line in records if 'loss' in line]
    assert len(losses['DDPStrategy']) == 5
    assert losses['FSDPStrategy'] == pytest.approx(losses['DDPStrategy'], rel=1e-4)


def test_scripts(run_tool, run_process, root, environment, config, workplace, tmp_path):
    """They start what trains on two nodes, and what evaluates in two processes."""
    path = config(BASE, text(batch_size=4))
    # Two launchers that only meet at a port, as on two machines.
    variables = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=free_port())
    with contextlib.ExitStack() as stack:
        nodes = []
        for rank in (0, 1):
            command = ['bash', root / 'tools/dist_train.sh', path, 1, '--work-dir']
            node = started(
                [*command, tmp_path / f'node_{rank}'],
                cwd=workplace,
                env={**environment, **variables, 'NODE_RANK': str(rank)},
            )
            nodes.append(stack.enter_context(node))
        # Both are read at once: one that cannot write would keep the other waiting.
        with ThreadPoolExecutor() as pool:
            outputs = [*pool.map(lambda node: node.communicate(timeout=300)[0], nodes)]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:]
    checkpoint = tmp_path / 'node_0/iter_3.pth'
    assert checkpoint.exists()
    assert not (tmp_path / 'node_1/iter_3.pth').exists()

    # Two processes count every image once.
    one = run_tool(
        'test.py', path, checkpoint, '--work-dir', tmp_path / 'a', cwd=workplace
    )
    two = run_process(
        *('dist_test.sh', path, checkpoint, 2, '--work-dir', tmp_path / 'b'),
        cwd=workplace,
        PORT=free_port(),
    )
    accuracy = [text.split('accuracy/top1: ')[1].split()[0] for text in (one, two)]
    assert accuracy[0] == accuracy[1]


STALLED = """
import os
import signal
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class Stall(Hook):
    # One process stands still, as on a machine that swaps or a disk that hangs.
    def __init__(self, rank):
        self.rank = rank

    def after_train_iter(self, runner, *args, **kwargs):
        if get_rank() == self.rank:
            Path('stalled.pid').write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_stalled_rank(root, environment, config, workplace, tmp_path):
    """The others do not wait for ever, and the launcher ends them all."""
    (tmp_path / 'stalled.py').write_text(STALLED)
    path = config(
        BASE,
        text(
            "custom_imports = dict(imports=['stalled', 'mdeq_mm'])\n"
            "custom_hooks = [dict(type='Stall', rank=0)]\n",
            batch_size=4,
        ),
    )
    # Either rank stalls in a training of its own. Both run at once, because most of the
    # time the launcher waits for a process that cannot end by itself.
    with contextlib.ExitStack() as stack:
        launchers = []
        for rank in (0, 1):
            folder = tmp_path / f'rank_{rank}'
            folder.mkdir()
            (folder / 'data').symlink_to(workplace / 'data')
            launcher = started(
                [
                    *('bash', root / 'tools/dist_train.sh', path, 2, '--timeout', 10),
                    *('--work-dir', folder / 'run'),
                    *('--cfg-options', f'custom_hooks.0.rank={rank}'),
                ],
                cwd=folder,
                env={
                    **environment,
                    'PORT': free_port(),
                    'PYTHONPATH': f'{tmp_path}:{root}',
                },
            )
            launchers.append(stack.enter_context(launcher))
        with ThreadPoolExecutor() as pool:
            outputs = [*pool.map(lambda x: x.communicate(timeout=300)[0], launchers)]
        for rank, (launcher, output) in enumerate(zip(launchers, outputs)):
            assert launcher.returncode != 0
            assert f'rank {1 - rank} of 2 has waited in vain' in output, output[-3000:]
            assert f'rank {rank} of 2 has' not in output
            stalled = int((tmp_path / f'rank_{rank}/stalled.pid').read_text())
            with pytest.raises(ProcessLookupError):
                os.kill(stalled, 0)
