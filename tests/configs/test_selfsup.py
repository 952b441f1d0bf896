"""The recipes without labels: that they train, and what is evaluated of them."""

from pathlib import Path

import mmpretrain.models  # noqa: F401  registers the models
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mdeq_mm.deq import Equilibrium

from .test_configs import RUNNER_ARGUMENTS, fake_classes

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/selfsup'
# Each linear evaluation, and the training that it evaluates.
PROBES = {
    'mdeq-nano_1xb64-linear-8e_digits.py': (
        'simsiam_mdeq-nano_1xb32-coslr-300_digits.py'
    ),
}


def runner_of(cfg, work_dir):
    """A runner of two iterations on two classes of small images."""
    cfg.work_dir, cfg.log_level = str(work_dir), 'ERROR'
    cfg.experiment_name = f'reduced {Path(cfg.filename).name}'
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.default_hooks.logger.interval = 1
    backbone = cfg.model.backbone
    backbone.forward_solver.max_evals = 4
    backbone.gradient.solver.max_evals = 3
    for stage in ('train', 'val'):
        loader = cfg.get(f'{stage}_dataloader')
        if loader:
            loader.update(batch_size=2, num_workers=0, persistent_workers=False)
            fake_classes(loader, work_dir / 'data')
    init_default_scope(cfg.default_scope)
    return Runner(**{key: cfg[key] for key in RUNNER_ARGUMENTS & set(cfg)})


def pretrained(name, work_dir):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.train_cfg.max_iters = 2
    cfg.default_hooks.equilibrium.pretrain_iters = 1
    cfg.default_hooks.checkpoint.interval = 2
    runner = runner_of(cfg, work_dir)
    runner.train()
    return runner


def test_none_is_forgotten():
    names = {*PROBES, *PROBES.values()}
    assert names == {path.name for path in CONFIGS.glob('*.py')}


@pytest.mark.versions
@pytest.mark.parametrize('name', sorted(set(PROBES.values())))
def test_trains_without_labels(name, tmp_path):
    """One unrolled iteration and one at the equilibrium."""
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.train_dataloader.dataset.with_label is False
    assert cfg.get('val_dataloader') is None
    runner = pretrained(name, tmp_path)
    scalars = runner.message_hub.log_scalars
    losses = scalars['train/loss'].data[0]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert 'train/forward_residual' in scalars
    assert isinstance(runner.model.backbone.equilibrium.mode, Equilibrium)


@pytest.mark.versions
@pytest.mark.parametrize('name', PROBES)
class TestLinearEvaluation:
    def test_backbone_is_that_of_the_training(self, name):
        cfg = Config.fromfile(CONFIGS / name)
        training = Config.fromfile(CONFIGS / PROBES[name])
        assert cfg.model.backbone.init_cfg == dict(
            type='Pretrained',
            checkpoint=f'work_dirs/{Path(PROBES[name]).stem}/'
            f'iter_{training.train_cfg.max_iters}.pth',
            prefix='backbone.',
        )
        added = {'init_cfg', 'frozen_stages'}
        assert added <= set(cfg.model.backbone)
        plain = {k: v for k, v in cfg.model.backbone.items() if k not in added}
        assert plain == training.model.backbone

    def test_trains_the_head_alone(self, name, tmp_path):
        before = pretrained(PROBES[name], tmp_path / 'training').model.backbone
        cfg = Config.fromfile(CONFIGS / name)
        cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'training/iter_2.pth')
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        runner = runner_of(cfg, tmp_path / 'probe')
        head = runner.model.head.fc.weight.clone()
        runner.train()
        after = runner.model.backbone
        assert isinstance(after.equilibrium.mode, Equilibrium)
        expected = before.state_dict()
        for key, tensor in after.state_dict().items():
            assert torch.equal(tensor, expected[key]), key
        assert not torch.equal(runner.model.head.fc.weight, head)
        scalars = runner.message_hub.log_scalars
        assert 0 <= scalars['val/accuracy/top1'].current() <= 100

    def test_checkpoint_of_the_unrolled_phase(self, name, tmp_path):
        """With a prefix mmengine takes the weights alone, and the backbone solves."""
        training = pretrained(PROBES[name], tmp_path)
        layer = training.model.backbone.equilibrium
        layer.mode = layer.unrolled
        torch.save(dict(state_dict=training.model.state_dict()), tmp_path / 'u.pth')
        cfg = Config.fromfile(CONFIGS / name)
        cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'u.pth')
        model = MODELS.build(cfg.model)
        model.init_weights()
        assert isinstance(model.backbone.equilibrium.mode, Equilibrium)
