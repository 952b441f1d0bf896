"""The equilibrium under accumulation, loss scaling, reduced precision and averaging."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from mdeq_mm.deq import (
    BroydenSolver,
    Equilibrium,
    ImplicitGradient,
    PhantomGradient,
)
from mdeq_mm.engine import JacobianRegularizationHook
from mdeq_mm.models import MDEQ

pytestmark = pytest.mark.versions  # autocast is torch's
TIGHT = dict(type='BroydenSolver', max_evals=100, tol=1e-13)


@pytest.fixture
def make_model(calm):
    def make(**kwargs):
        backbone = MDEQ(
            arch=dict(channels=(8, 8), num_groups=2, expansion=1),
            forward_solver=TIGHT,
            gradient=dict(type='ImplicitGradient', solver=TIGHT),
            norm_eval=True,
            **kwargs,
        )
        return Wrapped(calm(backbone))

    return make


class Wrapped(nn.Module):
    """A classifier on the finest branch that returns its losses."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(8, 3)

    def forward(self, images, labels):
        features = self.backbone(images)[0].mean(dim=(2, 3))
        return dict(loss=nn.functional.cross_entropy(self.fc(features), labels))


@pytest.fixture
def regularise(make_fake_runner):
    """Adds the loss of JacobianRegularizationHook to a model."""
    hooks = []

    def begin(model, weight=0.5):
        hook = JacobianRegularizationHook(weight, num_vectors=1)
        hook.before_train_iter(make_fake_runner(model))
        hooks.append(hook)  # it ends when it goes away

    return begin


def batch(dtype):
    images = torch.rand(8, 3, 16, 16, dtype=dtype)
    return images, torch.arange(8) % 3


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize('jacobian', [False, True])
def test_accumulation_equals_a_larger_batch(make_model, regularise, jacobian):
    model = make_model().double().train()
    if jacobian:
        regularise(model)
    images, labels = batch(torch.float64)
    found = []
    for n_parts in (1, 4):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        wrapper = OptimWrapper(optimizer, accumulative_counts=n_parts)
        wrapper.initialize_count_status(model, 0, n_parts)
        grads = {}
        optimizer.register_step_pre_hook(
            lambda *args, grads=grads: grads.update(gradients(model))
        )
        torch.manual_seed(1)  # of the random vectors
        for x, y in zip(images.chunk(n_parts), labels.chunk(n_parts)):
            with wrapper.optim_context(model):
                losses = model(x, y)
            assert ('loss_jacobian' in losses) == jacobian
            wrapper.update_params(sum(losses.values()))
        found.append(grads)
    whole, parts = found
    for name in whole:
        error = (parts[name] - whole[name]).norm() / whole[name].norm()
        assert error < 1e-8, name


@pytest.mark.parametrize('jacobian', [False, True])
def test_loss_scale_changes_no_gradient(make_model, regularise, jacobian):
    model = make_model().double().train()
    if jacobian:
        regularise(model)
    found = []
    for scale in (1, 2**16):
        torch.manual_seed(1)
        model.zero_grad()
        (sum(model(*batch(torch.float64)).values()) * scale).backward()
        found.append({name: g / scale for name, g in gradients(model).items()})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('jacobian', [False, True])
@pytest.mark.parametrize('mode', ['implicit', 'phantom', 'unrolled'])
def test_bfloat16_autocast(make_model, regularise, mode, jacobian):
    model = make_model().train()
    layer = model.backbone.equilibrium
    solver = BroydenSolver(max_evals=12)
    layer.mode = dict(
        implicit=Equilibrium(solver, ImplicitGradient(solver)),
        phantom=Equilibrium(solver, PhantomGradient()),
        unrolled=layer.unrolled,
    )[mode]
    if jacobian:
        regularise(model)
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            losses = model(*batch(torch.float32))
        sum(losses.values()).backward()
        found.append(torch.cat([g.flatten() for g in gradients(model).values()]))
    cosine = nn.functional.cosine_similarity(*found, dim=0)
    assert found[1].isfinite().all()
    assert cosine > 0.98


def test_overflow_passes_through(make_model):
    """A scale too large gives infinite gradients and costs one product."""
    model = make_model().train()
    passes = []
    model.backbone.equilibrium.register_pass_hook(
        lambda layer, forward_pass: passes.append(forward_pass)
    )
    loss = model(*batch(torch.float32))['loss']
    (loss * 1e30 * 1e30).backward()
    (forward_pass,) = passes
    assert (forward_pass.adjoint.n_evals == 1).all()  # there is nothing to solve
    assert not all(p.grad.isfinite().all() for p in model.parameters())


def test_amp_optim_wrapper_in_a_stock_run(make_runner, monkeypatch):
    """mmengine wants an accelerator for it; everything behind that check runs here."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    runner = make_runner(
        [
            dict(type='ImplicitGradientHook', pretrain_iters=2),
            dict(type='JacobianRegularizationHook', weight=0.1, pretrain_weight=0.1),
        ],
        optim_wrapper=dict(
            type='AmpOptimWrapper',
            dtype='bfloat16',
            optimizer=dict(type='SGD', lr=0.1),
            clip_grad=dict(max_norm=1.0),
            accumulative_counts=2,
        ),
    )
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    after = runner.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_ema_and_clipping(make_runner):
    runner = make_runner(
        [
            dict(type='ImplicitGradientHook', pretrain_iters=2),
            dict(type='JacobianRegularizationHook', weight=0.1),
            dict(type='EMAHook', momentum=0.5),
        ],
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1.0)
        ),
    )
    runner.train()
    for value in runner.model.state_dict().values():
        assert value.isfinite().all()


@pytest.mark.parametrize('frozen_stages', [0, 1])
def test_frozen_stages(make_model, regularise, frozen_stages):
    model = make_model(frozen_stages=frozen_stages).train()
    regularise(model)
    losses = model(*batch(torch.float32))
    sum(losses.values()).backward()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen
    for parameter in model.parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad)


def test_channels_last(make_model):
    model = make_model().eval()
    images, _ = batch(torch.float32)
    with torch.no_grad():
        expected = model.backbone(images)
        model.to(memory_format=torch.channels_last)
        actual = model.backbone(images.to(memory_format=torch.channels_last))
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
