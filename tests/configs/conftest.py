import functools

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import import_modules_from_strings


@pytest.fixture(scope='session')
def build_meta(root):
    """Builds the model of a config, at full width but without any storage.

    Both are shared: tests must not change them.
    """

    @functools.cache
    def build(name):
        cfg = Config.fromfile(root / 'configs' / name)
        init_default_scope(cfg.default_scope)
        import_modules_from_strings(f'{cfg.default_scope}.models')
        with torch.device('meta'):
            return cfg, MODELS.build(cfg.model)

    return build
