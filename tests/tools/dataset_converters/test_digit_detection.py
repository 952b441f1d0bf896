"""The built-in data set for detection."""

import json

import cv2
import numpy as np
import pytest

N_IMAGES = dict(train=1000, val=200)
# How many boxes each digit has, and the mean of all boxes. No hash: the last bit of
# some pixels depends on the versions of OpenCV and numpy, and so may the end of a box.
COUNTS = dict(
    train=[317, 315, 269, 313, 362, 339, 336, 328, 335, 319],
    val=[73, 64, 64, 70, 58, 83, 64, 65, 56, 62],
)
BOXES = dict(
    train=(38.588, 32.569, 18.906, 30.825), val=(39.454, 32.055, 18.759, 30.583)
)
# Mean blue, green and red of all images, and of the first.
MEANS = dict(
    train=((90.231, 89.949, 90.090), (124.125, 120.376, 128.321)),
    val=((90.177, 89.162, 91.917), (84.048, 64.900, 140.636)),
)


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('dataset_converters/digit_detection.py')


@pytest.fixture(scope='module')
def data(tool, tmp_path_factory):
    path = tmp_path_factory.mktemp('data')
    tool.main(['--out-dir', str(path)])
    return path / 'digit_detection'


@pytest.fixture(scope='module', params=N_IMAGES)
def split(request, data):
    """Name, images and annotations of a split."""
    path = data / 'annotations' / f'{request.param}.json'
    content = json.loads(path.read_text())
    folder = data / request.param
    images = {
        image['id']: cv2.imread(str(folder / image['file_name']))
        for image in content['images']
    }
    return request.param, images, content


class TestDigest:
    def test_annotations(self, split):
        name, _, content = split
        categories = [one['category_id'] for one in content['annotations']]
        assert np.bincount(categories, minlength=11).tolist() == [0, *COUNTS[name]]
        boxes = [one['bbox'] for one in content['annotations']]
        np.testing.assert_allclose(np.mean(boxes, axis=0), BOXES[name], atol=0.01)

    def test_colours(self, split):
        name, images, _ = split
        pixels = np.stack(list(images.values()))
        means = [part.reshape(-1, 3).mean(0) for part in (pixels, pixels[0])]
        np.testing.assert_allclose(means, MEANS[name], atol=0.01)


class TestAnnotations:
    def test_as_coco_has_them(self, split):
        name, images, content = split
        assert len(images) == N_IMAGES[name]
        assert {image.shape for image in images.values()} == {(96, 96, 3)}
        assert [one['name'] for one in content['categories']] == [*'0123456789']
        numbers = [one['id'] for one in content['annotations']]
        assert numbers == list(range(1, len(numbers) + 1))
        assert {one['image_id'] for one in content['annotations']} == set(images)

    def test_boxes(self, split):
        _, images, content = split
        taken = {index: np.zeros((96, 96), bool) for index in images}
        for one in content['annotations']:
            x, y, width, height = one['bbox']
            assert one['area'] == width * height
            assert min(x, y) >= 0
            assert max(x + width, y + height) <= 96
            assert min(width, height) >= 2
            assert max(width, height) <= 44
            window = np.s_[y : y + height, x : x + width]
            assert not taken[one['image_id']][window].any()
            taken[one['image_id']][window] = True

    def test_boxes_hold_the_ink(self, split):
        """They are brighter than what is around them."""
        _, images, content = split
        inside, outside = [], []
        taken = {index: np.zeros((96, 96), bool) for index in images}
        for one in content['annotations']:
            x, y, width, height = one['bbox']
            taken[one['image_id']][y : y + height, x : x + width] = True
        for index, mask in taken.items():
            inside.append(images[index][mask].mean())
            outside.append(images[index][~mask].mean())
        assert np.mean(np.array(inside) > np.array(outside) + 20) > 0.9


def test_box_of(tool):
    ink = np.zeros((6, 6), bool)
    ink[1:4, 2] = ink[3, 4] = True
    assert tool.box_of(np.s_[10:16, 20:26], ink) == [22, 11, 3, 3]


def test_splits_share_no_digit(tool, load_tool):
    digits = load_tool('dataset_converters/digits.py').split_digits()
    parts = {split: part for split, (part, _) in tool.SPLITS.items()}
    assert parts == dict(train='train', val='test')
    assert len(digits['train'][0]) + len(digits['test'][0]) == 1797


def test_data_that_is_there_is_left(tool, tmp_path, capsys):
    (tmp_path / 'data/digit_detection').mkdir(parents=True)
    tool.main([])
    assert 'digit_detection exists and is left as it is' in capsys.readouterr().out
    assert not list((tmp_path / 'data/digit_detection').iterdir())
