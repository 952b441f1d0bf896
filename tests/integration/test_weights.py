"""The weights in the package reach the figures of the metafiles."""

import json

import pytest
import yaml

from mdeq_mm import apis

from ..isolation import NO_WORKERS

pytestmark = pytest.mark.slow
EARTH = 'fcn_mdeq-micro_1xb8-600_earth-96x96'


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
    assert apis.list_models(trained=True) == [EARTH]


def test_earth(evaluate, earth, results):
    """On all tiles of `val`, Australia and the Far East."""
    found = evaluate(
        *(EARTH, earth),
        'test_dataloader.dataset.data_prefix.img_path=img_dir/val',
        'test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/val',
    )
    for metric, expected in results('segmentation', EARTH)['the Earth, val'].items():
        assert found[metric] == pytest.approx(expected, abs=0.5), metric
