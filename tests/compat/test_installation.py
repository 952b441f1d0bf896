import sys
from importlib import import_module
from importlib.metadata import distributions

import pytest
from mmengine.utils.dl_utils import mmcv_full_available

from mdeq_mm.compat import installation

pytestmark = pytest.mark.versions


class TestCheckVersions:
    def test_installed_versions(self):
        installation.check_versions()

    def test_too_old(self, monkeypatch):
        monkeypatch.setattr(installation.mmengine, '__version__', '0.7.0')
        with pytest.raises(ImportError, match=r'needs mmengine>=0.10.0, found 0.7.0'):
            installation.check_versions()


class TestMissingOps:
    def test_toolboxes_can_be_imported(self):
        """With the full mmcv nothing is done, and mmengine can tell the two apart.

        mmengine asks whether there are ops before it reverts SyncBN.
        """
        # Both ask for the ops at once.
        for name in ('mmcv.ops', 'mmseg.models', 'mmpretrain.models'):
            import_module(name)
        installed = {d.metadata['Name'] for d in distributions()}
        is_lite = bool(installed & {'mmcv-lite', 'mmcv_lite'})
        assert isinstance(sys.modules['mmcv._ext'], installation.MissingOps) == is_lite
        assert mmcv_full_available() != is_lite

    def test_stand_in(self):
        ops = installation.MissingOps('mmcv._ext')
        with pytest.raises(
            ImportError, match=r"'softnms' .* install mmcv instead of mmcv-lite"
        ):
            ops.softnms(1, 2, threshold=3)
        assert not hasattr(ops, '__path__')
