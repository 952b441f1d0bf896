"""What needs a GPU: `pytest -m cuda`."""

import copy

import pytest
import torch
from torch import nn

from mdeq_mm.deq import AndersonSolver, BroydenSolver
from mdeq_mm.deq.compile import CellCompiler
from mdeq_mm.models import MDEQ

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'),
]
HOOKS = [
    dict(type='ImplicitGradientHook', pretrain_iters=2),
    dict(type='JacobianRegularizationHook', weight=1e-3, pretrain_weight=1e-3),
]


@pytest.fixture
def backbone(calm):
    solver = dict(type='BroydenSolver', max_evals=60, tol=1e-6)
    arch = dict(channels=(8, 16), num_groups=4, expansion=2)
    gradient = dict(type='ImplicitGradient', solver=solver)
    return calm(MDEQ(arch, forward_solver=solver, gradient=gradient)).eval()


def test_gpu_equals_cpu(backbone):
    images = torch.randn(2, 3, 33, 47)
    found = []
    for device in ('cpu', 'cuda'):
        model = copy.deepcopy(backbone).to(device)
        outputs = model(images.to(device))
        sum(output.square().mean() for output in outputs).backward()
        grads = [p.grad.flatten().cpu() for p in model.parameters()]
        found.append((*(output.detach().cpu() for output in outputs), torch.cat(grads)))
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('training', [False, True])
def test_graph_replay(backbone, training):
    """Several passes, for the first ones record: results must not be overwritten."""
    replayed = copy.deepcopy(backbone)
    layer = replayed.equilibrium
    layer.compiler = CellCompiler(dict(mode='reduce-overhead'))
    found = []
    for model in (backbone.cuda(), replayed.cuda()):
        torch.manual_seed(1)
        with torch.set_grad_enabled(training):
            outputs = [model(torch.randn(2, 3, 64, 64).cuda()) for _ in range(5)]
            if training:
                sum(o.square().mean() for output in outputs for o in output).backward()
        found.append([o for output in outputs for o in output])
        found[-1] += [p.grad for p in model.parameters() if training]
    for actual, expected in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('history_dtype', [None, 'bfloat16'])
@pytest.mark.parametrize('cls', [AndersonSolver, BroydenSolver])
def test_solvers(cls, history_dtype):
    matrix = torch.randn(40, 40, device='cuda') / 14
    shift = torch.randn(8, 40, device='cuda')
    solver = cls(100, 1e-5, history_dtype=history_dtype)
    solution = solver.solve(lambda z: torch.tanh(z @ matrix) + shift, shift)
    assert solution.converged.all()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mixed_precision(make_runner, dtype):
    """With a scale that overflows at first: the scaler skips those steps."""
    runner = make_runner(
        HOOKS,
        optim_wrapper=dict(
            type='AmpOptimWrapper',
            dtype=dtype,
            loss_scale=dict(init_scale=2.0**40) if dtype == 'float16' else 1.0,
            optimizer=dict(type='SGD', lr=0.01),
        ),
        length=30,
    )
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    after = runner.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    name = 'fc.weight'
    assert not torch.equal(before[name].cpu(), after[name].cpu())


def test_sync_batch_norm(backbone):
    """It synchronises outside of the solve alone, so it may stand in stem and heads."""
    torch.distributed.init_process_group(
        'nccl', init_method='tcp://127.0.0.1:29533', rank=0, world_size=1
    )
    try:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).cuda().train()
        model = nn.parallel.DistributedDataParallel(model)
        images = torch.randn(2, 3, 32, 32, device='cuda')
        sum(output.square().mean() for output in model(images)).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()
