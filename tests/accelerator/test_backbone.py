"""The backbone on an accelerator: the values of the CPU, and few reads back."""

import copy
from contextlib import nullcontext

import pytest
import torch

from mdeq_mm.models import MDEQ

pytestmark = pytest.mark.cuda

ARCH = dict(channels=(8, 16), num_groups=4)
SOLVERS = ['PicardSolver', 'AndersonSolver', 'BroydenSolver']
N_EVALS = 9
# The device is asked every third evaluation.
N_LOOKS = 3


def spend_all(solver, **kwargs):
    return dict(type=solver, max_evals=N_EVALS, tol=0.0, **kwargs)


def implicit(solver):
    return dict(type='ImplicitGradient', solver=spend_all(solver))


SHINE = dict(
    type='ImplicitGradient',
    solver=None,
    initial_guess=dict(type='InverseJacobianGuess'),
)
REFINED_SHINE = dict(SHINE, solver=spend_all('BroydenSolver'))
PHANTOM = dict(type='PhantomGradient', steps=2)
# Solver, gradient, reads back in backward.
CASES = [
    *((solver, implicit(solver), N_LOOKS) for solver in SOLVERS),
    *((solver, PHANTOM, 0) for solver in SOLVERS),
    ('BroydenSolver', SHINE, 0),
    ('BroydenSolver', REFINED_SHINE, N_LOOKS),
]
IDS = [f'{case[0]}-{i}' for i, case in enumerate(CASES)]


@pytest.fixture
def make(calm):
    """Makes a backbone whose equilibrium exists, with dropout only if asked for."""

    def build(solver='BroydenSolver', **kwargs):
        torch.manual_seed(0)
        settings = dict(forward_solver=spend_all(solver), gradient=implicit(solver))
        return calm(MDEQ(ARCH, **{**settings, **kwargs}))

    return build


@pytest.fixture
def images():
    return torch.rand(3, 3, 33, 47, generator=torch.Generator().manual_seed(0))


def train(model, images, amp=None):
    """Returns outputs and gradients of one training pass."""
    model.train()
    torch.manual_seed(1)
    device = images.device.type
    with nullcontext() if amp is None else torch.autocast(device, amp):
        outputs = model(images)
        loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(('solver', 'gradient', 'n_backward'), CASES, ids=IDS)
class TestTraining:
    @pytest.mark.parametrize('with_cp', [False, True])
    def test_values(
        self, make, images, device, same, solver, gradient, n_backward, with_cp
    ):
        model = make(solver, gradient=gradient, with_cp=with_cp, dropout=0.0)
        twin = copy.deepcopy(model).to(device)
        found, expected = train(twin, images.to(device)), train(model, images)
        assert len(found) == len(expected) > 40
        for ours, theirs in zip(found, expected):
            assert ours.device.type == device
            same(ours, theirs)

    def test_reads(self, make, images, device, reads, solver, gradient, n_backward):
        model = make(solver, gradient=gradient, dropout=0.3).to(device).train()
        images = images.to(device)
        with reads() as forward:
            outputs = model(images)
        with reads() as backward:
            sum(output.mean() for output in outputs).backward()
        assert len(forward) == N_LOOKS
        assert len(backward) == n_backward


class TestInference:
    """Samples leave the batch as they converge."""

    @pytest.fixture
    def solver(self, request):
        return dict(type=request.param, max_evals=60, tol=1e-4)

    @pytest.mark.parametrize('solver', SOLVERS, indirect=True)
    def test_values_and_reads(self, make, images, device, same, solver, reads):
        images[1:] *= torch.tensor([0.01, 30.0]).view(-1, 1, 1, 1)
        model = make(forward_solver=solver).eval()
        twin = copy.deepcopy(model).to(device)
        layer = twin.equilibrium
        passes = []
        with torch.no_grad(), layer.register_pass_hook(lambda _, p: passes.append(p)):
            expected = model(images)
            images = images.to(device)
            with reads() as found:
                outputs = twin(images)
        for ours, theirs in zip(outputs, expected):
            same(ours, theirs)
        solution = passes[0].solution
        assert solution.converged.all()
        n_evals = solution.n_evals.tolist()
        assert len(set(n_evals)) > 1
        assert len(found) == -(-max(n_evals) // 3)

    def test_deployed(self, make, images, device, same):
        model = make().eval()
        twin = copy.deepcopy(model).to(device)
        twin.switch_to_deploy()
        twin.switch_to_deploy()
        with torch.no_grad():
            outputs = twin(images.to(device))
            for ours, theirs in zip(outputs, model(images)):
                torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-2, atol=1e-3)
        again = make(deploy=True).to(device).eval()
        again.load_state_dict(twin.state_dict())
        with torch.no_grad():
            for ours, theirs in zip(again(images.to(device)), outputs):
                same(ours, theirs)

    def test_stopping_every_evaluation_is_a_setting(self, make, images, device, reads):
        solver = spend_all('PicardSolver', check_interval=1)
        model = make(forward_solver=solver).to(device).eval()
        images = images.to(device)
        with torch.no_grad(), reads() as found:
            model(images)
        assert len(found) == N_EVALS


class TestGuesses:
    def test_previous(self, make, images, device, same, reads):
        model = make(initial_guess=dict(type='PreviousGuess')).eval()
        twin = copy.deepcopy(model).to(device)
        with torch.no_grad():
            for frame in (images, images + 0.01):
                expected, there = model(frame), frame.to(device)
                with reads() as found:
                    outputs = twin(there)
                for ours, theirs in zip(outputs, expected):
                    same(ours, theirs)
        assert len(found) == N_LOOKS

    def test_projected(self, make, images, device, same, reads):
        model = make(initial_guess=dict(type='ProjectedGuess'))
        twin = copy.deepcopy(model).to(device)
        results = []
        for each, where in ((model, 'cpu'), (twin, device)):
            with each.equilibrium.initial_guess.supervision():
                results.append(train(each, images.to(where)))
        for ours, theirs in zip(*results):
            same(theirs, ours)
        twin.eval()
        images = images.to(device)
        with torch.no_grad(), reads() as found:
            twin(images)
        assert len(found) == N_LOOKS


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
class TestAutocast:
    @pytest.mark.parametrize(('solver', 'gradient', 'n_backward'), CASES, ids=IDS)
    def test_training(self, make, images, device, solver, gradient, n_backward, dtype):
        model = make(solver, gradient=gradient, with_cp=True).to(device)
        model(images.to(device))  # what autocast has cast must not be seen without it
        found = train(model, images.to(device), dtype)
        assert len(found) == 2 + len(list(model.parameters()))
        assert all(tensor.isfinite().all() for tensor in found)
        assert all(tensor.dtype == torch.float32 for tensor in found)

    def test_near_full_precision(self, make, images, device, dtype):
        model = make().to(device).eval()
        images = images.to(device)
        with torch.no_grad():
            full = model(images)
            with torch.autocast(device, dtype):
                narrow = model(images)
        for ours, theirs in zip(narrow, full):
            assert not torch.equal(ours.cpu(), theirs.cpu())
            error = (ours - theirs).norm() / theirs.norm()
            assert error < 0.05

    def test_reads(self, make, images, device, reads, dtype):
        model = make(dropout=0.3).to(device)
        images = images.to(device)
        with reads() as found:
            train(model, images, dtype)
        assert len(found) == 2 * N_LOOKS


def test_double_precision(make, images, device):
    model = make().to(device).double().eval()
    with torch.no_grad():
        outputs = model(images.to(device).double())
    assert all(output.dtype == torch.float64 for output in outputs)
    assert all(output.isfinite().all() for output in outputs)


def test_back_to_the_cpu(make, images, device, same):
    model = make()
    expected = train(copy.deepcopy(model), images)
    model.to(device)(images.to(device))
    for ours, theirs in zip(train(model.cpu(), images), expected):
        assert ours.is_cpu
        same(ours, theirs)
