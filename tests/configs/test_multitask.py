"""The configs of several tasks: settings of the single ones, and that they train."""

from pathlib import Path

import mmpretrain.models  # noqa: F401  registers the models
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mdeq_mm.models import MultiTaskModel

from .test_configs import (
    RUNNER_ARGUMENTS,
    count,
    fake_classes,
    fake_scenes,
)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = sorted(path.name for path in (CONFIGS / 'multitask').glob('*.py'))
# The task of each config that gives the backbone, and what gives the other.
PARTS = {
    'mdeq-micro_1xb64-1xb8-1200_digits-digit-scenes.py': dict(
        digits='classification/mdeq-tiny_1xb64_digits.py',
        scenes='segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py',
    ),
    'mdeq-micro_1xb64-1xb4-1500_cifar10-camvid.py': dict(
        cifar10='classification/mdeq-tiny_2xb64_cifar10.py',
        camvid='segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py',
    ),
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def cfg(name):
    return Config.fromfile(CONFIGS / 'multitask' / name)


def test_settings_are_those_of_the_single_tasks(cfg, name):
    assert set(PARTS) == set(NAMES)
    for task, path in PARTS[name].items():
        single = Config.fromfile(CONFIGS / path)
        joint = cfg.model.tasks[task]
        is_segmentor = single.default_scope == 'mmseg'
        if is_segmentor:
            assert cfg.model.backbone == single.model.backbone
        head = 'decode_head' if is_segmentor else 'head'
        assert joint[head] == single.model[head]
        assert joint._scope_ == single.default_scope
        preprocessor = single.get('data_preprocessor', {})
        assert joint.data_preprocessor == (
            single.model.data_preprocessor if is_segmentor else preprocessor
        )
        for stage in ('train', 'val', 'test'):
            loader = cfg[f'{stage}_dataloader'][task]
            expected = single[f'{stage}_dataloader']
            for key in ('batch_size', 'dataset', 'sampler', 'num_workers'):
                assert loader[key] == expected[key]
        for stage in ('val', 'test'):
            expected = single[f'{stage}_evaluator']
            assert cfg[f'{stage}_evaluator'][task] == expected


def test_holds_nothing_but_settings(cfg, name, tmp_path):
    """What a runner writes into its work directory is the same config."""
    plain = (dict, list, tuple, str, int, float, bool, type(None))

    def check(value):
        assert isinstance(value, plain)
        for part in value.values() if isinstance(value, dict) else ():
            check(part)

    check(cfg._cfg_dict)
    cfg.dump(tmp_path / name)
    assert Config.fromfile(tmp_path / name).to_dict() == cfg.to_dict()


def test_row_of_the_readme(cfg, name):
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert isinstance(model, MultiTaskModel)
    readme = (CONFIGS / 'multitask/README.md').read_text()
    (row,) = (line for line in readme.splitlines() if f']({name})' in line)
    assert f'| {count(model.backbone):,} | {count(model):,} |' in row


@pytest.mark.versions
def test_trains_and_evaluates(cfg, name, tmp_path):
    """One unrolled iteration and one at the equilibrium, on small images."""
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
    cfg.experiment_name = f'reduced {name}'
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.logger.interval = cfg.default_hooks.equilibrium.pretrain_iters = 1
    cfg.model.backbone.forward_solver.max_evals = 4
    cfg.model.backbone.gradient.solver.max_evals = 3
    for task, model in cfg.model.tasks.items():
        size = model.data_preprocessor.get('size')
        for stage in ('train', 'val'):
            loader = cfg[f'{stage}_dataloader'][task]
            loader.update(batch_size=2, num_workers=0, persistent_workers=False)
            if size is None:
                fake_classes(loader, tmp_path / task)
            else:
                fake_scenes(loader, tmp_path / task, size)
        if size is not None:
            model.data_preprocessor.size = tuple(side * 32 // size[0] for side in size)
    runner = Runner(**{key: cfg[key] for key in RUNNER_ARGUMENTS & set(cfg)})
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert 'train/forward_evals' in scalars
    first, second = PARTS[name]
    for metric in (f'{first}/accuracy/top1', f'{second}/mIoU'):
        assert 0 <= scalars[f'val/{metric}'].current() <= 100
