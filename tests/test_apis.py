import sys

import mmpretrain.models
import mmseg.models
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mdeq_mm import apis
from mdeq_mm.deq import Unrolled
from mdeq_mm.models import MDEQ

CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
BACKBONE = dict(type='MDEQ', arch=dict(channels=(8, 16), num_groups=4))


def small(**settings):
    """A config of a small classifier."""
    head = dict(type='LinearClsHead', in_channels=16, num_classes=3)
    neck = dict(type='GlobalAveragePooling')
    backbone = dict(BACKBONE, out_indices=[1])
    model = dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    return Config(dict(default_scope='mmpretrain', model=model, **settings))


class TestLoadConfig:
    def write(self, path, scope):
        path.write_text(f'default_scope = {scope!r}\nlist = dict(a=[1, 2])\n')
        return path

    @pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain'])
    def test_toolboxes(self, tmp_path, scope):
        cfg = apis.load_config(self.write(tmp_path / 'config.py', scope))
        assert cfg.default_scope == scope

    def test_options(self, tmp_path):
        path = str(self.write(tmp_path / 'config.py', 'mmseg'))
        assert apis.load_config(path, {'list.a': [3], 'b.c': 4}).to_dict() == dict(
            default_scope='mmseg', list=dict(a=[3]), b=dict(c=4)
        )

    @pytest.mark.parametrize('scope', [None, 'mmseggg', 'not/a name', '', 3])
    def test_scope_that_is_no_toolbox(self, tmp_path, scope):
        path = self.write(tmp_path / 'config.py', scope)
        with pytest.raises(ValueError, match='must be the name of an installed') as e:
            apis.load_config(path)
        message = str(e.value)
        assert message.startswith(f'default_scope of {path} ')
        assert all(name in message for name in ('mmseg', 'mmpretrain'))
        assert message.endswith(f', got {scope!r}')

    def test_scope_among_the_options(self, tmp_path):
        path = self.write(tmp_path / 'config.py', None)
        cfg = apis.load_config(path, dict(default_scope='mmseg'))
        assert cfg.default_scope == 'mmseg'


class TestConfigInPython:
    """The toolboxes' own configs of the new style name classes, and no scope."""

    TEXT = """
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead

from mdeq_mm.models import MDEQ

default_scope = None
model = dict(
    type=ImageClassifier,
    backbone=dict(
        type=MDEQ, arch=dict(channels=(8, 16), num_groups=4), out_indices=[1]
    ),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, in_channels=16, num_classes=3),
)
"""

    @pytest.mark.parametrize('scope', ['default_scope = None', ''])
    def test_model(self, tmp_path, scope):
        text = self.TEXT.replace('default_scope = None', scope)
        (tmp_path / 'config.py').write_text(text)
        cfg = apis.load_config(tmp_path / 'config.py')
        assert apis.toolbox_of(cfg) == 'mmpretrain'
        model = apis.build_model(cfg)
        assert type(model) is mmpretrain.models.ImageClassifier
        torch.save(model.state_dict(), tmp_path / 'model.pth')
        loaded = apis.load_model(cfg, tmp_path / 'model.pth', device='cpu')
        assert isinstance(loaded.backbone, MDEQ)

    def test_segmentor(self, tmp_path):
        (tmp_path / 'config.py').write_text(
            'from mmseg.models import EncoderDecoder\n'
            'default_scope = None\n'
            'model = dict(type=EncoderDecoder)\n'
        )
        assert apis.toolbox_of(apis.load_config(tmp_path / 'config.py')) == 'mmseg'

    def test_type_that_is_a_name(self, tmp_path):
        (tmp_path / 'config.py').write_text(
            "default_scope = None\nmodel = dict(type='ImageClassifier')\n"
        )
        with pytest.raises(ValueError, match='or None if the type of the model is a'):
            apis.load_config(tmp_path / 'config.py')


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A toolbox of one's own, with a registry and a model."""
    package = tmp_path / 'site/my_toolbox'
    package.mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / 'registry.py').write_text(
        'from mmengine import registry\n'
        "MODELS = registry.Registry('model', parent=registry.MODELS, "
        "scope='my_toolbox', locations=['my_toolbox.networks'])\n"
    )
    (package / 'networks.py').write_text(
        'from mmengine.registry import MODELS as ROOT\n'
        'from mmengine.model import BaseModel\n'
        'from .registry import MODELS\n'
        '@MODELS.register_module()\n'
        'class Network(BaseModel):\n'
        '    def __init__(self, backbone, data_preprocessor=None):\n'
        '        super().__init__(data_preprocessor)\n'
        '        self.backbone = MODELS.build(backbone)\n'
        '    def forward(self, inputs, data_samples=None, mode="tensor"):\n'
        '        return self.backbone(inputs)\n'
    )
    monkeypatch.syspath_prepend(package.parent)
    yield package
    MODELS.children.pop('my_toolbox', None)
    for name in [name for name in sys.modules if name.split('.')[0] == 'my_toolbox']:
        del sys.modules[name]


class TestToolboxOfOnesOwn:
    CONFIG = (
        "default_scope = 'my_toolbox'\n"
        f"model = dict(type='Network', backbone={BACKBONE})\n"
    )

    def test_is_accepted(self, mine, tmp_path):
        (tmp_path / 'config.py').write_text(self.CONFIG)
        model = apis.build_model(apis.load_config(tmp_path / 'config.py'))
        assert type(model).__module__ == 'my_toolbox.networks'
        assert isinstance(model.backbone, MDEQ)

    def test_models_where_others_have_them(self, mine, tmp_path):
        (mine / 'registry.py').write_text(
            (mine / 'registry.py').read_text().replace('.networks', '.models')
        )
        (mine / 'networks.py').rename(mine / 'models.py')
        (tmp_path / 'config.py').write_text(self.CONFIG)
        model = apis.build_model(apis.load_config(tmp_path / 'config.py'))
        assert type(model).__module__ == 'my_toolbox.models'

    def test_its_import_fails(self, mine, tmp_path):
        (mine / 'models.py').write_text('import what_is_not_installed\n')
        (tmp_path / 'config.py').write_text(self.CONFIG)
        cfg = apis.load_config(tmp_path / 'config.py')
        with pytest.raises(ModuleNotFoundError, match='what_is_not_installed'):
            apis.build_model(cfg)


class TestBuildModel:
    def test_evaluation_mode_without_sync_bn(self):
        cfg = small(data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[1.0] * 3))
        cfg.model.backbone.norm_cfg = dict(type='SyncBN')
        model = apis.build_model(cfg)
        assert isinstance(model, mmpretrain.models.ImageClassifier)
        assert not any(module.training for module in model.modules())
        kinds = {type(module) for module in model.modules()}
        assert nn.SyncBatchNorm not in kinds
        assert model.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]

    def test_changes_nothing_around_it(self):
        cfg = small(data_preprocessor=dict(mean=[1.0] * 3, std=[1.0] * 3))
        before = cfg.to_dict()
        scopes = dict(DefaultScope._instance_dict)
        apis.build_model(cfg)
        assert cfg.to_dict() == before
        assert list(DefaultScope._instance_dict) == list(scopes)

    def test_models_of_two_toolboxes(self, root):
        models = [
            apis.build_model(apis.load_config(root / path))
            for path in (CLASSIFIER, SEGMENTOR)
        ]
        assert isinstance(models[0], mmpretrain.models.ImageClassifier)
        assert isinstance(models[1], mmseg.models.EncoderDecoder)


class TestLoadModel:
    def test_weights(self, tmp_path):
        torch.manual_seed(1)
        model = apis.build_model(small())
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        torch.manual_seed(2)
        loaded = apis.load_model(small(), tmp_path / 'model.pth', device='cpu')
        assert not loaded.training
        expected = model.state_dict()
        for key, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, expected[key]), key

    def test_other_weights(self, tmp_path):
        state = apis.build_model(small()).state_dict()
        del state['head.fc.bias']
        torch.save(dict(state_dict=state), tmp_path / 'model.pth')
        with pytest.raises(ValueError, match='1 missing: head.fc.bias'):
            apis.load_model(small(), tmp_path / 'model.pth', device='cpu')
        model = apis.load_model(
            small(), tmp_path / 'model.pth', device='cpu', allow_partial=True
        )
        assert torch.equal(model.head.fc.weight, state['head.fc.weight'])

    def test_checkpoint_of_the_unrolled_phase(self, tmp_path):
        model = apis.build_model(small())
        layer = apis.single_layer(model)
        layer.mode = layer.unrolled
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        loaded = apis.load_model(small(), str(tmp_path / 'model.pth'), device='cpu')
        assert isinstance(apis.single_layer(loaded).mode, Unrolled)


class TestBuildTestLoader:
    def test_batches(self, tmp_path):
        (tmp_path / 'cat').mkdir()
        (tmp_path / 'cat/0.png').touch()
        dataset = dict(type='CustomDataset', data_root=str(tmp_path))
        loader = apis.build_test_loader(
            small(
                test_dataloader=dict(
                    batch_size=2,
                    num_workers=0,
                    dataset=dataset,
                    sampler=dict(type='DefaultSampler', shuffle=False),
                )
            )
        )
        assert len(loader.dataset) == 1
        assert type(loader.dataset).__module__.startswith('mmpretrain')

    @pytest.mark.parametrize('settings', [{}, dict(test_dataloader=None)])
    def test_none(self, settings):
        with pytest.raises(ValueError, match='must have a test_dataloader'):
            apis.build_test_loader(small(**settings))

    def test_of_several_tasks(self):
        loaders = dict(cats=dict(dataset=dict()), streets=dict(dataset=dict()))
        with pytest.raises(ValueError, match='of one task, got those of cats, streets'):
            apis.build_test_loader(small(test_dataloader=loaders))


class TestImageShape:
    def test_of_the_preprocessor(self, root):
        assert apis.image_shape(apis.load_config(root / SEGMENTOR)) == (64, 64)

    def test_beside_the_model(self):
        cfg = small(data_preprocessor=dict(size=(32, 48)))
        assert apis.image_shape(cfg) == (32, 48)

    @pytest.mark.parametrize('settings', [{}, dict(data_preprocessor=dict(mean=[0]))])
    def test_default(self, settings):
        assert apis.image_shape(small(**settings)) == (224, 224)


class TestLayers:
    def test_one(self):
        model = apis.build_model(small())
        name, layer = apis.find_layer(model)
        assert name == 'backbone.equilibrium'
        assert layer is model.backbone.equilibrium is apis.single_layer(model)
        assert apis.equilibrium_layers(model) == [layer]

    def test_none(self):
        model = nn.Linear(1, 1)
        assert apis.find_layer(model) is None
        assert apis.equilibrium_layers(model) == []
        with pytest.raises(ValueError, match='is needed, Linear has none'):
            apis.single_layer(model)

    def test_two(self):
        model = nn.ModuleDict({name: MODELS.build(BACKBONE) for name in ('a', 'b')})
        for find in (apis.find_layer, apis.single_layer):
            with pytest.raises(ValueError, match=r'got a.equilibrium, b.equilibrium$'):
                find(model)

    def test_how_it_solves(self):
        layer = apis.single_layer(MODELS.build(BACKBONE))
        assert apis.solving_mode(layer) is layer.configured
        with layer.using(mode=Unrolled(1)):
            assert apis.solving_mode(layer) is layer.configured
        solver = dict(type='PicardSolver', max_evals=3)
        with layer.using(solver=solver):
            assert apis.solving_mode(layer).solver.max_evals == 3
