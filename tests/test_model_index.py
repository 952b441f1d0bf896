import hashlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmpretrain.apis import ModelHub
from mmseg.apis import MMSegInferencer, inference_model, init_model
from modelindex.load_model_index import load as load_model_index

from mdeq_mm import apis, model_index
from mdeq_mm.checkpoints import load_checkpoint
from mdeq_mm.models import MDEQ

pytestmark = pytest.mark.versions
CLASSIFIER = 'mdeq-tiny_1xb64_digits'
SEGMENTOR = 'fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64'
TRAINED = 'fcn_mdeq-micro-contraction_1xb8-600_earth-96x96'
MAX_BYTES = 4_000_000  # of all weights in the package
# What a file tells of its training, beside the weights.
META = {'dataset_meta', 'epoch', 'iter', 'mdeq_mm_version', 'mmengine_version'}
META |= {'seed', 'time'}


def metafiles(root):
    for name in yaml.safe_load((root / 'model-index.yml').read_text())['Import']:
        yield name, yaml.safe_load((root / name).read_text())['Models']


class TestNames:
    def test_all(self, root):
        names = [model['Name'] for _, models in metafiles(root) for model in models]
        assert apis.list_models() == sorted(names)
        assert {CLASSIFIER, SEGMENTOR} <= set(names)

    def test_pattern(self):
        assert apis.list_models('mdeq-tiny_1xb64_') == [CLASSIFIER]
        assert apis.list_models('fcn_mdeq*digit-scenes') == [SEGMENTOR]
        assert apis.list_models('resnet50') == []
        assert apis.list_models('fcn_mdeq*earth', trained=True) == [TRAINED]
        assert apis.list_models(SEGMENTOR, trained=True) == []

    def test_config_path(self, root):
        for name in apis.list_models():
            path = Path(apis.config_path(name))
            assert path.is_file()
            assert path.stem == name
            assert path.is_relative_to(root)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="no model 'mdeq-tiny_digits'") as error:
            apis.config_path('mdeq-tiny_digits')
        assert CLASSIFIER in str(error.value)
        assert SEGMENTOR not in str(error.value)
        with pytest.raises(ValueError, match=SEGMENTOR):
            apis.config_path('')

    @pytest.mark.parametrize('kind', ['checkout', 'wheel', 'editable'])
    def test_wherever_the_package_lies(self, root, tmp_path, monkeypatch, kind):
        package = tmp_path / 'mdeq_mm'
        mim = tmp_path if kind == 'checkout' else package / '.mim'
        mim.mkdir(parents=True, exist_ok=True)
        package.mkdir(exist_ok=True)
        for name in ('configs', 'checkpoints', 'model-index.yml'):
            if kind == 'editable':
                (mim / name).symlink_to(root / name)
            elif (root / name).is_dir():
                shutil.copytree(root / name, mim / name)
            else:
                shutil.copy(root / name, mim / name)
        monkeypatch.setattr(model_index, '__file__', str(package / 'model_index.py'))
        path = apis.config_path(SEGMENTOR)
        assert path.startswith(str(mim))
        assert Config.fromfile(path).default_scope == 'mmseg'
        for path in apis.model_files(TRAINED):
            assert path.startswith(str(mim))
            assert Path(path).is_file()


class TestModelFiles:
    """Config and weights of a model that comes with its weights."""

    def test_model_without_weights(self):
        with pytest.raises(ValueError, match=f'no weights come .* {SEGMENTOR!r}') as e:
            apis.model_files(SEGMENTOR)
        assert TRAINED in str(e.value)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match='there is no model'):
            apis.model_files('mdeq')

    @pytest.mark.parametrize('name', apis.list_models(trained=True))
    def test_digest(self, root, name):
        (entry,) = (
            model
            for _, models in metafiles(root)
            for model in models
            if model['Name'] == name
        )
        config, weights = apis.model_files(name)
        assert config == apis.config_path(name)
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        assert entry['Metadata']['SHA256'] == digest
        stem, _, short = Path(weights).stem.rpartition('-')
        assert digest.startswith(short)
        date = entry['Metadata']['Training Date'].replace('-', '')
        assert stem == f'{name}_{date}'

    @pytest.mark.parametrize('name', apis.list_models(trained=True))
    def test_weights_alone(self, name):
        """Any reader takes the file, and it names no path of another machine."""
        config, weights = apis.model_files(name)
        content = torch.load(weights, weights_only=True)
        assert content.keys() == load_checkpoint(weights).keys()
        assert set(content) == {'meta', 'state_dict'}
        assert set(content['meta']) == META
        assert content['meta']['dataset_meta']['classes']
        cfg = Config.fromfile(config)
        state_dict = apis.load_model(cfg, weights, 'cpu').state_dict()
        assert state_dict.keys() == content['state_dict'].keys()
        for key, tensor in state_dict.items():
            assert tensor.dtype == content['state_dict'][key].dtype, key

    def test_size(self):
        paths = [apis.model_files(name)[1] for name in apis.list_models(trained=True)]
        assert sum(Path(path).stat().st_size for path in paths) <= MAX_BYTES


@pytest.fixture
def hub(monkeypatch):
    """The hub of mmpretrain, without the models of its own, which take seconds."""
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    monkeypatch.setattr(ModelHub, '_ModelHub__mmpretrain_registered', True)
    return ModelHub


class TestRegisterModels:
    def test_names(self, hub):
        assert mmpretrain.list_models('mdeq') == []
        apis.register_models()
        apis.register_models()
        assert mmpretrain.list_models('mdeq') == apis.list_models('mdeq')
        # It could not build them.
        assert mmpretrain.list_models('fcn') == []
        named = mmpretrain.list_models('mdeq', task='Image Classification')
        assert CLASSIFIER in named

    def test_get_model(self, hub):
        apis.register_models()
        model = mmpretrain.get_model(CLASSIFIER)
        assert isinstance(model.backbone, MDEQ)
        assert model._metainfo.name == CLASSIFIER
        with pytest.warns(UserWarning, match='Unable to find pre-defined checkpoint'):
            mmpretrain.get_model(CLASSIFIER, pretrained=True)

    def test_weights(self, hub, root, tmp_path, monkeypatch):
        """``pretrained=True`` takes the weights that come with the package."""
        shutil.copytree(root / 'configs', tmp_path / 'configs')
        shutil.copy(root / 'model-index.yml', tmp_path)
        metafile = tmp_path / 'configs/classification/metafile.yml'
        index = yaml.safe_load(metafile.read_text())
        for model in index['Models']:
            model['Weights'] = 'model.pth' if model['Name'] == CLASSIFIER else None
        metafile.write_text(yaml.safe_dump(index))
        monkeypatch.setattr(model_index, '__file__', str(tmp_path / 'mdeq_mm/x.py'))
        config = apis.load_config(apis.config_path(CLASSIFIER))
        expected = apis.build_model(config).state_dict()
        torch.save(dict(state_dict=expected), tmp_path / 'model.pth')

        apis.register_models()
        monkeypatch.chdir(tmp_path / 'configs')
        model = mmpretrain.get_model(CLASSIFIER, pretrained=True)
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[key]), key
        inferencer = mmpretrain.ImageClassificationInferencer(
            *apis.model_files(CLASSIFIER), device='cpu'
        )
        weight = inferencer.model.head.fc.weight
        assert torch.equal(weight, expected['head.fc.weight'])

    def test_inferencer(self, hub):
        apis.register_models()
        kind = mmpretrain.ImageClassificationInferencer
        assert CLASSIFIER in kind.list_models()
        inferencer = kind(CLASSIFIER, pretrained=False, device='cpu')
        (result,) = inferencer(np.zeros((32, 32, 3), np.uint8))
        assert result['pred_scores'].shape == (10,)

    def test_name_that_is_taken(self, hub, tmp_path):
        """As of two toolboxes: the stock error."""
        path = tmp_path / 'metafile.yml'
        path.write_text(f'Models: [{{Name: {CLASSIFIER}, Config: config.py}}]')
        hub.register_model_index(path)
        with pytest.raises(ValueError, match='conflict'):
            apis.register_models()

    def test_without_mmpretrain(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmpretrain.apis', None)
        with pytest.raises(ModuleNotFoundError, match='mmpretrain'):
            apis.register_models()

    def test_they_are_those_that_mmpretrain_builds(self, root):
        registered = model_index.MMPRETRAIN_METAFILES
        for name, models in metafiles(root):
            if name.startswith('configs/detection') and find_spec('mmdet') is None:
                assert name not in registered  # its configs cannot be read
                continue
            scope = Config.fromfile(root / models[0]['Config']).default_scope
            assert (scope == 'mmpretrain') == (name in registered), name


def test_segmentation_inferencer():
    inferencer = MMSegInferencer(apis.config_path(SEGMENTOR), device='cpu')
    result = inferencer(np.zeros((64, 64, 3), np.uint8))
    assert result['predictions'].shape == (64, 64)


def test_trained_segmentor():
    """Both interfaces of mmseg take what ``model_files`` returns, and agree."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    inferencer = MMSegInferencer(*apis.model_files(TRAINED), device='cpu')
    model = init_model(*apis.model_files(TRAINED), device='cpu')
    assert model.dataset_meta['classes'][0] == 'water'
    assert model.dataset_meta.items() >= inferencer.model.dataset_meta.items()
    labels = inference_model(model, image).pred_sem_seg.data[0].numpy()
    assert (inferencer(image)['predictions'] == labels).all()


class TestMetafiles:
    """What readers of metafiles take for granted."""

    def test_weights(self, root):
        """mmengine asks for the key. mmpretrain writes null where there are none."""
        for _, models in metafiles(root):
            for model in models:
                assert 'Weights' in model, model['Name']

    def test_readme(self, root):
        """``mim search`` shows the one of the collection."""
        index = load_model_index(str(root / 'model-index.yml'))
        readmes = {one.name: one.readme for one in index.collections}
        for model in index.models:
            folder = model.config.rpartition('/')[0]
            assert readmes[model.in_collection] == f'{folder}/README.md', model.name
