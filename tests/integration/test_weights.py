"""The weights in the package reach the figures of the metafiles."""

import json
from importlib.util import find_spec

import pytest
import yaml

from mdeq_mm import apis
from mdeq_mm.inference import Predictor

from ..isolation import NO_WORKERS

pytestmark = pytest.mark.slow
EARTH = 'fcn_mdeq-micro-contraction_1xb8-600_earth-96x96'
CIFAR10 = 'mdeq-tiny-s2-contraction_1xb64-10e_cifar10'
FIRST_1000 = 73.4  # top-1, as measured when the weights were published


@pytest.fixture(scope='module')
def results(root):
    """Results of a model by data set, as its metafile has them."""

    def read(task, name):
        path = root / f'configs/{task}/metafile.yml'
        models = yaml.safe_load(path.read_text())['Models']
        (model,) = (model for model in models if model['Name'] == name)
        return {entry['Dataset']: entry['Metrics'] for entry in model['Results']}

    return read


@pytest.fixture
def evaluate(run_tool, tmp_path):
    """Returns the metrics of a model, found by its name."""

    def run(name, cwd, *options):
        run_tool(
            *('test.py', name, '--work-dir', tmp_path, *NO_WORKERS, *options), cwd=cwd
        )
        (path,) = tmp_path.glob('*/*.json')
        return json.loads(path.read_text())

    return run


def test_all_are_evaluated():
    assert apis.list_models(trained=True) == [EARTH, CIFAR10]


def test_earth(evaluate, earth, results):
    """On all tiles of `val`, Australia and the Far East."""
    found = evaluate(
        *(EARTH, earth),
        'test_dataloader.dataset.data_prefix.img_path=img_dir/val',
        'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/val',
    )
    for metric, expected in results('segmentation', EARTH)['the Earth, val'].items():
        assert found[metric] == pytest.approx(expected, abs=0.5), metric


def test_cifar10(evaluate, cifar10):
    """On the first 1,000 test images; the metafile has the figure of all of them."""
    found = evaluate(CIFAR10, cifar10, 'test_dataloader.dataset.indices=1000')
    assert found['accuracy/top1'] == pytest.approx(FIRST_1000, abs=0.5)


@pytest.mark.skipif(not find_spec('foolbox'), reason='foolbox is not installed')
def test_samples_of_cifar10(run_tool, tmp_path):
    """As `make show` names one."""
    run_tool('dataset_converters/cifar10_samples.py', cwd=tmp_path)
    config, weights = apis.model_files(CIFAR10)
    predictor = Predictor(apis.load_config(config), weights, 'cpu')
    paths = sorted(tmp_path.rglob('*.png'))
    first = [predictor.shares(predictor(predictor.read(path)))[0] for path in paths]
    named = [name == path.parent.name for (name, _), path in zip(first, paths)]
    assert len(named) == 20
    assert sum(named) >= 15
    assert named[paths.index(tmp_path / 'data/cifar10_samples/cat/00.png')]
