"""The weights of the cells stay within their bounds from before the first iteration."""

import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.engine import SpectralProjectionHook

pytestmark = pytest.mark.versions


def largest_norm(model):
    weight = model.layer.cell.linear.weight.detach()
    return float(torch.linalg.matrix_norm(weight, 2))


class TestSpectralProjectionHook:
    @pytest.mark.parametrize('max_norm', [0.2, 0.5])
    def test_before_and_after(self, toy_model, make_fake_runner, max_norm):
        hook = SpectralProjectionHook(max_norm=max_norm)
        runner = make_fake_runner(toy_model)
        nn.init.normal_(toy_model.layer.cell.linear.weight, std=9)
        stem = toy_model.stem.weight.detach().clone()
        hook.before_train(runner)
        assert 0.94 * max_norm < largest_norm(toy_model) <= max_norm * (1 + 1e-5)
        nn.init.normal_(toy_model.layer.cell.linear.weight, std=9)
        hook.after_train_iter(runner, 0)
        assert 0.94 * max_norm < largest_norm(toy_model) <= max_norm * (1 + 1e-5)
        assert torch.equal(toy_model.stem.weight, stem)

    def test_training(self, make_runner):
        """A large learning rate, and each iteration begins with bounded weights."""
        norms, gains = [], []

        class Look(Hook):
            def before_train_iter(self, runner, *args, **kwargs):
                for module in runner.model.backbone.equilibrium.cell.modules():
                    if isinstance(module, nn.Conv2d):
                        weight = module.weight.detach().flatten(1)
                        norms.append(float(torch.linalg.matrix_norm(weight, 2)))
                    elif isinstance(module, nn.GroupNorm):
                        gains.append(float(module.weight.abs().max()))

        optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=50.0))
        hook = dict(type='SpectralProjectionHook', max_norm=0.3, max_gain=0.2)
        runner = make_runner([hook, Look()], length=3, optim_wrapper=optim_wrapper)
        runner.train()
        # Two convolutions and three norms per block, one of each per path and at the
        # end, for two branches.
        assert len(norms) == 3 * (4 + 2 + 2)
        assert len(gains) == 3 * (6 + 2 + 2)
        assert 0.28 < max(norms) <= 0.3 * (1 + 2e-5)
        assert max(gains) == pytest.approx(0.2)
        assert all(math.isfinite(norm) for norm in norms)

    def test_resuming(self, make_runner):
        """As one training, to the bit."""
        hooks = [
            dict(type='SpectralProjectionHook', max_norm=0.3),
            dict(type='RandomStateHook'),
        ]
        whole = make_runner(hooks, length=6)
        whole.train()
        expected = {k: v.clone() for k, v in whole.model.state_dict().items()}
        path = f'{whole.work_dir}/iter_3.pth'
        resumed = make_runner(hooks, length=6, load_from=path, resume=True)
        resumed.train()
        for key, value in resumed.model.state_dict().items():
            assert torch.equal(value, expected[key]), key

    def test_frozen_cell(self, toy_model, make_fake_runner):
        """As that of a teacher: it stays as it is."""
        nn.init.normal_(toy_model.layer.cell.linear.weight, std=9)
        toy_model.layer.requires_grad_(False)
        before = toy_model.layer.cell.linear.weight.clone()
        hook = SpectralProjectionHook()
        hook.before_train(make_fake_runner(toy_model))
        hook.after_train_iter(make_fake_runner(toy_model), 0)
        assert torch.equal(toy_model.layer.cell.linear.weight, before)

    def test_before_averages(self, make_runner):
        """EMAHook sees projected weights, wherever it stands in the config."""
        hooks = [dict(type='EMAHook'), dict(type='SpectralProjectionHook')]
        runner = make_runner(hooks, length=1)
        names = [type(hook).__name__ for hook in runner.hooks]
        assert names.index('SpectralProjectionHook') < names.index('EMAHook')

    def test_model_without_layer(self, make_fake_runner):
        class Plain(BaseModel):
            def forward(self, x):
                return x

        hook = SpectralProjectionHook()
        with pytest.raises(
            ValueError, match='SpectralProjectionHook needs a model with'
        ):
            hook.before_train(make_fake_runner(Plain()))

    def test_sharded_model(self, toy_model, make_fake_runner, monkeypatch):
        path = 'mdeq_mm.engine.hooks.spectral_projection_hook.is_sharded'
        monkeypatch.setattr(path, lambda model: True)
        before = toy_model.layer.cell.linear.weight.detach().clone()
        with pytest.raises(ValueError, match='whole weights'):
            SpectralProjectionHook(1e-3).before_train(make_fake_runner(toy_model))
        assert torch.equal(toy_model.layer.cell.linear.weight, before)

    @pytest.mark.parametrize('name', ['max_norm', 'max_gain'])
    @pytest.mark.parametrize('value', [0, -1.0, math.inf, math.nan, '1', True])
    def test_wrong_argument(self, name, value):
        with pytest.raises((TypeError, ValueError), match=name):
            SpectralProjectionHook(**{name: value})
