import importlib.util
import sys

import pytest


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
