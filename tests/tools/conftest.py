import importlib.util
import sys

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(scope='session')
def load_tool(root):
    """Imports a tool by its path under ``tools``."""

    def load(path):
        name = path.removesuffix('.py').replace('/', '_')
        spec = importlib.util.spec_from_file_location(name, root / 'tools' / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(autouse=True)
def _default_scope(monkeypatch):
    """Forgets the default scope that a tool sets for its process."""
    instances = DefaultScope._instance_dict.copy()
    monkeypatch.setattr(DefaultScope, '_instance_dict', instances)
