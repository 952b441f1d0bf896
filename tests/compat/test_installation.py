import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.utils.dl_utils import mmcv_full_available
from torch import nn

from mdeq_mm.compat import installation

pytestmark = pytest.mark.versions


class TestMissingOps:
    def test_toolboxes_can_be_imported(self):
        """With the full mmcv nothing is done."""
        import_module('mmcv.ops')
        # They ask for the ops at once.
        for name in filter(find_spec, ('mmseg', 'mmpretrain')):
            import_module(f'{name}.models')
        is_lite = not list(Path(import_module('mmcv').__file__).parent.glob('_ext.*'))
        assert isinstance(sys.modules['mmcv._ext'], installation.MissingOps) == is_lite
        # OneDL's mmengine takes the stand-in for compiled ops.
        if mmcv_full_available() == is_lite:
            assert is_lite
            assert distribution('onedl-mmengine')

    def test_what_mmengine_does_where_it_believes_in_ops(self):
        """It asks whether there are ops, and then imports classes of mmcv.ops."""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
        cfg = dict(
            optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(bias_lr_mult=2)
        )
        optimizer = build_optim_wrapper(model, cfg).optimizer
        assert [group['lr'] for group in optimizer.param_groups] == [0.1, 0.2, 0.1, 0.1]
        reverted = revert_sync_batchnorm(model)[1]
        assert not isinstance(reverted, nn.SyncBatchNorm)
        assert reverted(torch.rand(2, 4, 3, 3)).shape == (2, 4, 3, 3)

    def test_stand_in(self):
        ops = installation.MissingOps('mmcv._ext')
        with pytest.raises(
            ImportError, match=r"'softnms' .* install mmcv instead of mmcv-lite"
        ):
            ops.softnms(1, 2, threshold=3)
        assert not hasattr(ops, '__path__')


class TestMissingNames:
    @pytest.fixture
    def toolbox(self, tmp_path, monkeypatch):
        """A toolbox that mmengine expects in a distribution of another name."""
        folder = tmp_path / 'site/mmstars/.mim/configs/_base_'
        folder.mkdir(parents=True)
        (tmp_path / 'site/mmstars/__init__.py').touch()
        (folder.parents[1] / 'model-index.yml').write_text('Import: []')
        (folder / 'runtime.py').write_text('stars = 5')
        monkeypatch.syspath_prepend(tmp_path / 'site')
        monkeypatch.setitem(MODULE2PACKAGE, 'mmstars', 'mmconstellation')
        yield
        sys.modules.pop('mmconstellation', None)

    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / 'config.py'
        path.write_text("_base_ = ['mmstars::_base_/runtime.py']")
        return path

    def test_bases_are_found(self, toolbox, config):
        with pytest.raises(ModuleNotFoundError, match='mmconstellation is not inst'):
            Config.fromfile(config)
        installation.stand_in_for_missing_names()
        assert Config.fromfile(config).stars == 5

    def test_what_is_there_stays(self, toolbox, monkeypatch):
        there = ModuleType('mmconstellation')
        there.__spec__ = ModuleSpec('mmconstellation', loader=None)
        monkeypatch.setitem(sys.modules, 'mmconstellation', there)
        installation.stand_in_for_missing_names()
        assert sys.modules['mmconstellation'] is there

    def test_with_the_packages_of_this_environment(self):
        """With OpenMMLab's there is no stand-in, and no other name is changed."""
        try:
            distribution('mmsegmentation')
        except PackageNotFoundError:
            assert ('mmsegmentation' in sys.modules) == (find_spec('mmseg') is not None)
        else:
            assert 'mmsegmentation' not in sys.modules
        assert MODULE2PACKAGE['mmseg'] == 'mmsegmentation'
