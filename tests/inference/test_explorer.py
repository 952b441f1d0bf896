import re
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from mmengine.config import ConfigDict

from mdeq_mm.deq import Unrolled
from mdeq_mm.inference import Explorer, UploadLimits, shares_as_html

from .conftest import CLASSIFIER, RESNET


@pytest.fixture
def path(texture, tmp_path):
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), texture(0, (64, 72)))
    return path


@pytest.fixture
def predictor(make_predictor):
    return make_predictor()


@pytest.fixture
def explore(predictor):
    return Explorer(predictor)


def evals_of(exploration):
    return int(exploration.summary.split()[0])


def line_of(exploration):
    """The residuals that the picture draws."""
    return exploration.figure.axes[0].lines[0].get_ydata()


def test_segmentation(explore, predictor, path):
    found = explore(path, 1e-3, 20)
    assert found.picture.shape == (64, 72, 3)
    assert found.summary.endswith('tolerance reached')
    prediction = predictor(predictor.read(path))
    for name, _ in predictor.shares(prediction, 11):
        assert f'>{name}</span>' in found.legend
        assert 'rgb({}, {}, {})'.format(*predictor.colours[name]) in found.legend
    assert len(line_of(found)) == evals_of(found)


def test_classification(make_predictor, path):
    found = Explorer(make_predictor(CLASSIFIER))(path, 1e-3, 20)
    assert found.picture.shape == (256, 288, 3)
    assert found.legend.count('%</span>') == 5
    assert len(line_of(found)) == evals_of(found)


def test_tolerance_and_budget(explore, path):
    loose, tight = (explore(path, tol, 20) for tol in (1e-1, 1e-4))
    assert 1 <= evals_of(loose) < evals_of(tight) < 20
    short = explore(path, 1e-4, 1)
    assert evals_of(short) == 1
    assert 'not reached' in short.summary
    assert line_of(short)[0] == line_of(tight)[0]


def test_nothing_is_left(explore, predictor, path):
    before = predictor(predictor.read(path)).solves
    explore(path, 1e-1, 2)
    assert predictor(predictor.read(path)).solves == before


def test_settings_of_the_model(explore, make_predictor):
    assert (explore.tol, explore.max_evals) == (1e-3, 20)
    options = {
        'model.backbone.forward_solver.tol': 0.0,
        'model.backbone.forward_solver.max_evals': 500,
    }
    beyond = Explorer(make_predictor(**options))
    assert (beyond.tol, beyond.max_evals) == (1e-6, 100)
    options['model.backbone.forward_solver.tol'] = 5.0
    assert Explorer(make_predictor(**options)).tol == 1


def test_one_at_a_time(explore, predictor, path):
    """Otherwise a prediction would count the solves of the others."""
    budgets = [1, 2, 3, 4] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda budget: explore(path, 1e-6, budget), budgets))
    assert [evals_of(exploration) for exploration in found] == budgets


def test_windows(explore, predictor, path):
    predictor.model.test_cfg = ConfigDict(
        mode='slide', crop_size=(48, 48), stride=(16, 24)
    )
    found = explore(path, 1e-3, 20)
    assert re.match(r'4 windows, at most \d+ evaluations', found.summary)
    assert len(found.figure.axes[0].lines) == 9  # two each, and the tolerance


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((0.0, 5), 'tol must be .* got 0.0'),
        ((float('nan'), 5), 'tol must be .* got nan'),
        ((1e-3, 0), 'max_evals must be .* got 0'),
        ((1e-3, 101), 'max_evals must be .* got 101'),
        ((1e-3, 2.5), 'max_evals must be .* got 2.5'),
    ],
)
def test_bad_settings(explore, path, arguments, message):
    with pytest.raises(ValueError, match=message):
        explore(path, *arguments)


def test_limits(predictor, path):
    with pytest.raises(ValueError, match='at most 4,000 pixels, got 72 x 64'):
        Explorer(predictor, UploadLimits(max_pixels=4000))(path, 1e-3, 5)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='cannot be read as an image'):
        Explorer(predictor)(path, 1e-3, 5)


def test_sliver(make_predictor, path):
    """The picture of a classifier has sides of 256 pixels at least."""
    cv2.imwrite(str(path), np.zeros((16, 20000, 3), np.uint8))
    with pytest.raises(ValueError, match='at most 20 times as long as the other'):
        Explorer(make_predictor(CLASSIFIER))(path, 1e-3, 1)


def test_image_that_is_too_small(explore, path):
    cv2.imwrite(str(path), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match='.'):
        explore(path, 1e-3, 5)


def test_models_that_do_not_solve(make_predictor, predictor):
    with pytest.raises(ValueError, match='with an equilibrium layer is needed'):
        Explorer(make_predictor(RESNET))
    layer = predictor.model.backbone.equilibrium
    layer.mode = Unrolled(3)
    with pytest.raises(ValueError, match='must be at the equilibrium'):
        Explorer(predictor)


def test_names_are_no_markup():
    text = shares_as_html([('<b>road</b>', 0.75), ('sky', 0.25)], dict(sky=(1, 2, 3)))
    assert '<b>' not in text
    assert '&lt;b&gt;road' in text
    assert re.findall(r'rgb\(.*?\)', text) == ['rgb(128, 128, 128)', 'rgb(1, 2, 3)']
    assert 'width:75.00%' in text
