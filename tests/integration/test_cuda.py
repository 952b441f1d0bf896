"""What needs a GPU: `pytest -m cuda`. `--device` names another accelerator.

``tests/accelerator`` holds what any accelerator must do; here is what makes CUDA
special, as far as the device has it.
"""

import copy
import threading

import pytest
import torch
from torch import nn

from mdeq_mm.deq import AndersonSolver, BroydenSolver, ImplicitGradient, PicardSolver
from mdeq_mm.deq.compile import CellCompiler
from mdeq_mm.engine.hooks import RandomStateHook
from mdeq_mm.models import MDEQ

from .. import pretended_accelerator

pytestmark = pytest.mark.cuda

ARCH = dict(channels=(8, 16), num_groups=4, expansion=2)
SOLVER = dict(type='BroydenSolver', max_evals=60, tol=1e-6)
HOOKS = [
    dict(type='ImplicitGradientHook', pretrain_iters=2),
    dict(type='JacobianRegularizationHook', weight=1e-3, pretrain_weight=1e-3),
    dict(type='TrajectorySupervisionHook', n_states=1),
    dict(type='InitialGuessLossHook'),
    dict(type='RandomStateHook'),
]


@pytest.fixture
def cuda(device):
    """Skips what exists on CUDA alone."""
    if torch.device(device).type != 'cuda':
        pytest.skip(f'{device} has none of it')


@pytest.fixture
def backbone(calm):
    gradient = dict(type='ImplicitGradient', solver=SOLVER)
    return calm(MDEQ(ARCH, forward_solver=SOLVER, gradient=gradient)).eval()


@pytest.fixture
def precise():
    """Switches TF32 off and takes it back, whichever way torch was told before."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def switch(cudnn, matmul):
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.backends.cuda.matmul.allow_tf32 = matmul

    yield switch
    switch(*before)


def results(model, images):
    """Returns outputs and gradients on the CPU."""
    model.zero_grad()
    outputs = model(images)
    sum(output.square().mean() for output in outputs).backward()
    grads = [p.grad.flatten().cpu() for p in model.parameters()]
    return [*(output.detach().cpu() for output in outputs), torch.cat(grads)]


def assert_near(found, expected, rtol=1e-2, atol=1e-3):
    assert len(found) == len(expected)
    for actual, wanted in zip(found, expected):
        torch.testing.assert_close(actual.cpu(), wanted.cpu(), rtol=rtol, atol=atol)


class TestPrecision:
    def test_equals_cpu(self, backbone, device):
        images = torch.randn(2, 3, 33, 47)
        twin = copy.deepcopy(backbone).to(device)
        assert_near(results(twin, images.to(device)), results(backbone, images))

    def test_without_tf32_it_is_nearer(self, backbone, device, precise):
        images = torch.randn(2, 3, 33, 47)
        expected = results(backbone, images)
        twin = copy.deepcopy(backbone).to(device)
        precise(cudnn=False, matmul=False)
        assert_near(results(twin, images.to(device)), expected, rtol=1e-3, atol=1e-4)
        precise(cudnn=True, matmul=True)
        assert_near(results(twin, images.to(device)), expected)

    @pytest.mark.parametrize('tf32', [False, True])
    @pytest.mark.parametrize('history_dtype', [None, 'bfloat16'])
    @pytest.mark.parametrize('cls', [AndersonSolver, BroydenSolver])
    def test_solvers(self, cls, history_dtype, tf32, device, precise):
        """Also where the solver's own products are in TF32."""
        precise(cudnn=tf32, matmul=tf32)
        matrix = (torch.randn(40, 40) / 14).to(device).double()
        shift = torch.randn(8, 40).to(device)

        def f(z):
            return torch.tanh(z.double() @ matrix).float() + shift

        solution = cls(100, 1e-5, history_dtype=history_dtype).solve(f, shift)
        assert solution.converged.all()
        z = solution.state
        error = torch.linalg.vector_norm(f(z) - z, dim=1)
        assert (error <= 1.1e-5 * torch.linalg.vector_norm(f(z), dim=1)).all()

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize('solver', [AndersonSolver, BroydenSolver, PicardSolver])
    def test_autocast(self, backbone, device, solver, dtype):
        solver = solver(30, 1e-3)
        model = backbone.to(device).train()
        images = torch.randn(2, 3, 33, 47).to(device)
        gradient = ImplicitGradient(solver)
        with model.equilibrium.using(solver=solver, gradient=gradient):
            expected = results(model, images)
            with torch.autocast(device, dtype):
                outputs = model(images)
            loss = sum(output.square().mean() for output in outputs)
            model.zero_grad()
            loss.backward()
        found = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
        assert found.isfinite().all()
        assert nn.functional.cosine_similarity(found, expected[-1], dim=0) > 0.9


class TestScaler:
    def test_by_hand(self, backbone, device):
        """With a scale that overflows at first: the scaler skips those steps."""
        settings = dict(init_scale=2.0**40, backoff_factor=2.0**-8)
        if hasattr(torch.amp, 'GradScaler'):
            scaler = torch.amp.GradScaler(device, **settings)
        else:  # torch 2.1
            scaler = torch.cuda.amp.GradScaler(**settings)
        model = backbone.to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        before = copy.deepcopy(model.state_dict())
        n_steps, scale = 0, scaler.get_scale()
        solver = PicardSolver(6)
        few = dict(solver=solver, gradient=ImplicitGradient(solver))
        for _ in range(10):
            images = torch.randn(2, 3, 16, 16).to(device)
            optimizer.zero_grad()
            with torch.autocast(device, torch.float16), model.equilibrium.using(**few):
                outputs = model(images)
                loss = sum(output.float().square().mean() for output in outputs)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            n_steps += scaler.get_scale() >= scale
            scale = scaler.get_scale()
        assert 0 < n_steps < 10
        after = model.state_dict()
        assert all(value.isfinite().all() for value in after.values())
        name = 'equilibrium.cell.fusion.0.1.conv.weight'
        assert not torch.equal(before[name].cpu(), after[name].cpu())

    @pytest.mark.usefixtures('cuda')
    @pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
    def test_stock_run_with_every_hook(self, make_runner, dtype):
        """mmengine's wrapper knows no device that is pretended."""
        runner = make_runner(
            HOOKS,
            model=dict(
                type='Classifier',
                dropout=0.2,
                initial_guess=dict(type='ProjectedGuess'),
            ),
            optim_wrapper=dict(
                type='AmpOptimWrapper',
                dtype=dtype,
                loss_scale=dict(init_scale=2.0**40) if dtype == 'float16' else 1.0,
                optimizer=dict(type='SGD', lr=0.01),
                clip_grad=dict(max_norm=1.0),
            ),
            length=30,
        )
        before = copy.deepcopy(runner.model.state_dict())
        runner.train()
        after = runner.model.state_dict()
        assert all(value.isfinite().all() for value in after.values())
        name = 'fc.weight'
        assert not torch.equal(before[name].cpu(), after[name].cpu())


class TestGraphs:
    @pytest.mark.slow
    @pytest.mark.usefixtures('cuda')
    @pytest.mark.parametrize('training', [False, True])
    def test_compiled_cell(self, backbone, training):
        """Several passes, for the first ones record: results stay what they were."""
        replayed = copy.deepcopy(backbone)
        layer = replayed.equilibrium
        layer.compiler = CellCompiler(dict(mode='reduce-overhead'))
        found = []
        for model in (backbone.cuda(), replayed.cuda()):
            torch.manual_seed(1)
            with torch.set_grad_enabled(training):
                outputs = [model(torch.randn(2, 3, 64, 64).cuda()) for _ in range(5)]
                if training:
                    sum(o.square().mean() for out in outputs for o in out).backward()
            found.append([o for output in outputs for o in output])
            found[-1] += [p.grad for p in model.parameters() if training]
        assert_near(*found)

    @pytest.mark.parametrize('solver', ['PicardSolver', 'BroydenSolver'])
    def test_a_fixed_budget_asks_nothing(self, backbone, device, solver):
        """With a check interval beyond the budget a whole pass can be recorded."""
        solver = dict(type=solver, max_evals=8, tol=0.0, check_interval=9)
        model = backbone.to(device)
        images = torch.randn(2, 3, 33, 47).to(device)
        with torch.no_grad(), model.equilibrium.using(solver=solver):
            expected = model(images)
            if device != 'cuda':
                with pretended_accelerator.reads_back() as reads:
                    found = model(images)
                assert reads == []
            else:
                found = self.replay(model, images)
        assert_near(found, expected)

    @staticmethod
    def replay(model, images):
        """Records a pass on noise and replays it on the images."""
        static = torch.randn_like(images)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = model(static)
        static.copy_(images)
        graph.replay()
        torch.cuda.synchronize()
        return outputs


class TestConcurrency:
    @pytest.mark.usefixtures('cuda')
    def test_two_streams(self, backbone):
        """Two models that compute at the same time do not see each other."""
        images = [torch.randn(2, 3, 33, 47).cuda() for _ in range(2)]
        models = [backbone.cuda(), copy.deepcopy(backbone).cuda()]
        expected = [results(model, x) for model, x in zip(models, images)]
        streams = [torch.cuda.Stream() for _ in models]
        torch.cuda.synchronize()
        for _ in range(3):
            losses = []
            for model, x, stream in zip(models, images, streams):
                model.zero_grad()
                with torch.cuda.stream(stream):
                    outputs = model(x)
                    losses.append(sum(o.square().mean() for o in outputs))
            for loss, stream in zip(losses, streams):
                with torch.cuda.stream(stream):
                    loss.backward()
            torch.cuda.synchronize()
            for model, wanted in zip(models, expected):
                grads = [p.grad.flatten().cpu() for p in model.parameters()]
                assert_near([torch.cat(grads)], wanted[-1:])

    def test_two_threads(self, backbone, device):
        images = [torch.randn(2, 3, 33, 47).to(device) for _ in range(2)]
        models = [backbone.to(device), copy.deepcopy(backbone).to(device)]
        expected = [results(model, x) for model, x in zip(models, images)]
        found = [None, None]

        def work(number):
            found[number] = results(models[number], images[number])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ours, theirs in zip(found, expected):
            assert_near(ours, theirs)


def test_random_state(device):
    """What RandomStateHook restores comes before the generator of the device too."""
    hook = RandomStateHook()
    checkpoint = {}
    hook.before_save_checkpoint(None, checkpoint)
    expected = torch.randn(5, device=device), torch.randn(5)
    hook._before_val = checkpoint[hook.KEY]
    hook.after_val(None)
    assert_near((torch.randn(5, device=device), torch.randn(5)), expected, 0, 0)


@pytest.mark.usefixtures('cuda')
def test_sync_batch_norm(backbone, tmp_path):
    """It synchronises outside of the solve alone, so it may stand in stem and heads."""
    torch.distributed.init_process_group(
        'nccl', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).cuda().train()
        model = nn.parallel.DistributedDataParallel(model)
        images = torch.randn(2, 3, 32, 32, device='cuda')
        sum(output.square().mean() for output in model(images)).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()
