"""A plugin: what stays for good does not slow the garbage collector down."""

import gc
import sys


class FrozenModules:
    """Hides imported modules from the garbage collector.

    mmengine calls the collector for every data set. With the toolboxes imported, each
    call would go through a million objects that no test ever frees.
    """

    # Less than a toolbox imports, and more than a test does.
    _STEP = 100

    def __init__(self) -> None:
        self._n_modules = 0

    def pytest_collection_finish(self) -> None:
        self._freeze()

    def pytest_runtest_logfinish(self) -> None:
        self._freeze()

    def _freeze(self) -> None:
        if len(sys.modules) > self._n_modules + self._STEP:
            gc.collect()
            gc.freeze()
            self._n_modules = len(sys.modules)
