"""The built-in data sets."""

import hashlib

import cv2
import numpy as np
import pytest

N_SCENES = dict(train=1000, test=200)
# Of the relative paths and pixels of all digits, in the order of their paths.
DIGITS_SHA256 = '668ea9361a4cbdb2eadbb264d07a0b3f33f1c821205db91d9f6124eb42fcd855'
# Mean blue, green and red of all scenes of a split, and of its first, second and last.
# No hash: the last bit of some pixels depends on the versions of OpenCV and numpy.
SCENES_MEANS = dict(
    train=(
        (94.500, 92.169, 93.047),
        (139.255, 132.313, 138.318),
        (134.395, 103.963, 70.632),
        (83.134, 108.685, 87.695),
    ),
    test=(
        (95.311, 95.969, 94.260),
        (97.751, 76.481, 149.029),
        (80.458, 64.783, 53.785),
        (98.403, 136.941, 75.273),
    ),
)
# Pixels of the background and of each digit.
MASKS_PIXELS = dict(
    train=(
        *(3566681, 49806, 51575, 50250, 57138, 53352),
        *(51679, 53473, 50959, 59861, 51226),
    ),
    test=(
        *(712988, 10334, 11347, 9757, 10910, 11026),
        *(10086, 14402, 9083, 9779, 9488),
    ),
)


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('dataset_converters/digits.py')


@pytest.fixture(scope='module')
def data(tool, tmp_path_factory):
    """The folder of both data sets."""
    path = tmp_path_factory.mktemp('data')
    tool.main(['--out-dir', str(path)])
    return path


def read(folder):
    """Reads the images of a folder, as OpenCV and the toolboxes do."""
    paths = sorted(folder.iterdir())
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths])


class TestDigest:
    def test_digits(self, data):
        digest = hashlib.sha256()
        for path in sorted((data / 'digits').rglob('*.png')):
            digest.update(path.relative_to(data / 'digits').as_posix().encode())
            digest.update(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tobytes())
        assert digest.hexdigest() == DIGITS_SHA256

    @pytest.mark.parametrize('split', SCENES_MEANS)
    def test_colours_of_the_scenes(self, data, split):
        images = read(data / 'digit_scenes/img_dir' / split)
        assert images.shape == (N_SCENES[split], 64, 64, 3)
        some = [images, images[0], images[1], images[-1]]
        means = [part.reshape(-1, 3).mean(0) for part in some]
        np.testing.assert_allclose(means, SCENES_MEANS[split], atol=0.01)

    @pytest.mark.parametrize('split', MASKS_PIXELS)
    def test_masks_of_the_scenes(self, data, split):
        masks = read(data / 'digit_scenes/ann_dir' / split)
        assert masks.shape == (N_SCENES[split], 64, 64)
        counts = np.bincount(masks.ravel())
        np.testing.assert_allclose(counts, MASKS_PIXELS[split], atol=20)


def test_digits(data):
    counts = {
        split: len(list((data / 'digits' / split).glob('*/*.png')))
        for split in ('train', 'test')
    }
    assert sum(counts.values()) == 1797
    assert counts['test'] == pytest.approx(1797 / 4, rel=0.02)
    images = read(data / 'digits/train/3')
    assert images.shape[1:] == (8, 8)
    assert images.max() == 255


def test_scenes(data):
    for split in ('train', 'test'):
        scenes = data / 'digit_scenes'
        folders = [scenes / 'img_dir' / split, scenes / 'ann_dir' / split]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        for image, mask in zip(*(read(folder)[:50] for folder in folders)):
            assert set(np.unique(mask)) - {0}
            # Ink is brighter than what is around it.
            assert image[mask > 0].mean() > image[mask == 0].mean() + 40


def test_data_that_is_there_is_left(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'N_SCENES', dict(train=1, test=1))
    (tmp_path / 'data/digits').mkdir(parents=True)
    tool.main([])
    assert 'digits exists and is left as it is' in capsys.readouterr().out
    assert not list((tmp_path / 'data/digits').iterdir())
    names = sorted(path.name for path in (tmp_path / 'data').iterdir())
    assert names == ['digit_scenes', 'digits']


def test_interrupted(tool, tmp_path, monkeypatch):
    """No half of a data set is left."""

    def fail(path, image):
        raise OSError('no space left')

    monkeypatch.setattr(tool, 'save', fail)
    with pytest.raises(OSError, match='no space left'):
        tool.main(['--out-dir', str(tmp_path / 'data')])
    assert list((tmp_path / 'data').iterdir()) == []
