import functools

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import import_modules_from_strings


@pytest.fixture(scope='session')
def shared_config(root):
    """Loads a config once. It is shared: tests must not change it."""
    return functools.cache(lambda name: Config.fromfile(root / 'configs' / name))


@pytest.fixture(scope='session')
def build_meta(shared_config):
    """Builds the model of a config, at full width but without any storage.

    Both are shared: tests must not change them.
    """

    @functools.cache
    def build(name):
        cfg = shared_config(name)
        init_default_scope(cfg.default_scope)
        import_modules_from_strings(f'{cfg.default_scope}.models')
        # The head of Segmenter and the stock ResNet read values while they are built.
        reads = any(part in name for part in ('segmenter', 'resnet'))
        device = 'cpu' if reads else 'meta'
        with torch.device(device):
            return cfg, MODELS.build(cfg.model)

    return build
