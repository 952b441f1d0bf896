from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from mdeq_mm.visualization import (
    Step,
    examine,
    picture_adjoint,
    picture_features,
    picture_input,
    picture_residuals,
    picture_slow_places,
    principal_colours,
)

PICTURES = [picture_residuals, picture_features, picture_slow_places, picture_adjoint]


def resized(examined, *size):
    """The examination of an image of another size."""
    step = Step(
        'the result',
        tuple(np.random.rand(channels, *size) for channels in (4, 2)),
        np.random.rand(*size),
    )
    return replace(examined, steps=(step,) * 5)


@pytest.mark.parametrize('picture', PICTURES)
class TestEveryPicture:
    def test_is_an_image(self, examined, picture):
        before = pyplot.get_fignums()
        image = picture({'a solver': examined})
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
        assert pyplot.get_fignums() == before

    def test_two_are_larger(self, examined, picture):
        one = picture({'a': examined}).size
        two = picture({'a': examined, 'b': examined}).size
        assert two > 1.4 * one

    @pytest.mark.parametrize('size', [(1, 1), (2, 40), (50, 3)])
    def test_any_size(self, examined, picture, size):
        image = picture({'': resized(examined, *size)})
        assert image.shape[0] < 2500
        assert image.shape[1] < 4000

    @pytest.mark.filterwarnings('ignore:The function whose fixed point')
    def test_breakdown(self, solving_layer, images, picture):
        images[1][0, 0, 0, 0] = torch.nan
        with torch.no_grad():
            forward_pass = solving_layer(images).forward_pass
        broken = examine(solving_layer, forward_pass, linearize=True)
        assert picture({'broken': broken}).std() > 10


def test_no_adjoint(examined):
    without = replace(examined, adjoint=None)
    assert picture_adjoint({'a': without}) is None
    assert picture_adjoint({'a': without, 'b': examined}).std() > 10


def test_slow_places_next_to_the_image(examined):
    alone = picture_slow_places({'a': examined})
    image = np.full((4, 6, 3), (0, 250, 0), np.uint8)
    both = picture_slow_places({'a': replace(examined, image=image)})
    assert both.shape[1] > 1.5 * alone.shape[1]
    assert (both == (0, 250, 0)).all(2).mean() > 0.2


class TestPictureInput:
    def test_image(self):
        inputs = torch.zeros(3, 2, 4, dtype=torch.uint8)
        inputs[0] = 255  # blue
        image = picture_input(inputs)
        assert image.shape == (2, 4, 3)
        assert (image == (0, 0, 255)).all()

    @pytest.mark.parametrize(
        'inputs',
        [None, 'a text', torch.rand(3, 2, 4), torch.zeros(1, 2, 4, dtype=torch.uint8)],
    )
    def test_anything_else(self, inputs):
        assert picture_input(inputs) is None


class TestPrincipalColours:
    def test_components(self):
        """The direction in which the map varies most is the first colour."""
        end = np.zeros((5, 1, 50))
        end[3, 0] = np.linspace(-1, 1, 50)
        end[1, 0] = 0.1 * np.sin(np.arange(50))
        (colours,) = principal_colours([end], [end])
        assert colours.shape == (1, 50, 3)
        correlation = np.corrcoef(colours[0, :, 0], end[3, 0])[0, 1]
        assert abs(correlation) > 0.99
        assert colours.min() == 0
        assert colours.max() == 1

    def test_same_colours_for_the_same_features(self):
        first, second = np.random.rand(2, 6, 3, 4)
        alone = principal_colours([first], [first, second])[0]
        both = principal_colours([second, first], [first, second])
        np.testing.assert_array_equal(both[1], alone)

    @pytest.mark.parametrize('channels', [1, 2])
    def test_few_channels(self, channels):
        feature = np.random.rand(channels, 3, 4)
        (colours,) = principal_colours([feature], [feature])
        assert (colours[..., channels:] == 0.5).all()
        assert (colours[..., :channels] != 0.5).any()

    @pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value):
        feature = np.random.rand(4, 3, 5)
        feature[:, 0, 0] = value
        (colours,) = principal_colours([feature], [feature])
        assert (colours[0, 0] == 0.5).all()
        assert np.isfinite(colours).all()
