import pickle
import sys
from importlib import import_module
from importlib.metadata import distributions

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils.dl_utils import mmcv_full_available

from mdeq_mm import compat

pytestmark = pytest.mark.versions
HAS_SAFE_GLOBALS = hasattr(torch.serialization, 'add_safe_globals')


class TestCheckVersions:
    def test_installed_versions(self):
        compat.check_versions()

    def test_too_old(self, monkeypatch):
        monkeypatch.setattr(compat.mmengine, '__version__', '0.7.0')
        with pytest.raises(ImportError, match=r'needs mmengine>=0.10.0, found 0.7.0'):
            compat.check_versions()


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
        assert isinstance(sys.modules['mmcv._ext'], compat.MissingOps) == is_lite
        assert mmcv_full_available() != is_lite

    def test_stand_in(self):
        ops = compat.MissingOps('mmcv._ext')
        with pytest.raises(
            ImportError, match=r"'nms' .* install mmcv instead of mmcv-lite"
        ):
            ops.nms(1, 2, threshold=3)
        assert not hasattr(ops, '__path__')


class TestCheckpoints:
    def test_training_checkpoint_loads(self, tmp_path):
        """What mmengine writes: log histories, numpy numbers and arrays."""
        history = HistoryBuffer([1.0, 2.0], [1, 1])
        content = dict(
            message_hub=dict(log_scalars={'train/loss': history}),
            array=np.arange(3, dtype=np.float32),
            number=np.float64(0.5),
            integers=np.arange(2, dtype=np.int64),
            state=torch.ones(2),
        )
        torch.save(content, tmp_path / 'checkpoint.pth')
        kwargs = dict(weights_only=True) if HAS_SAFE_GLOBALS else {}
        loaded = torch.load(tmp_path / 'checkpoint.pth', **kwargs)
        assert loaded['number'] == 0.5
        assert loaded['array'].tolist() == [0, 1, 2]
        buffer = loaded['message_hub']['log_scalars']['train/loss']
        assert buffer.mean() == 1.5

    @pytest.mark.skipif(not HAS_SAFE_GLOBALS, reason='torch loads anything')
    def test_getattr_serves_histories_alone(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return getattr, (np.ndarray, 'tofile')

        torch.save(Evil(), tmp_path / 'evil.pth')
        with pytest.raises(pickle.UnpicklingError, match="may not read 'tofile'"):
            torch.load(tmp_path / 'evil.pth', weights_only=True)

    def test_getattr_refuses_other_owners(self):
        assert compat.history_buffer_attribute(HistoryBuffer, 'mean')
        with pytest.raises(pickle.UnpicklingError, match='may not read'):
            compat.history_buffer_attribute(np.ndarray, 'tofile')
