"""The converter of a few images of CIFAR-10."""

import lzma
import pickle
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import pytest
from mmpretrain.datasets import CIFAR10
from PIL import Image


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('dataset_converters/cifar10_samples.py')


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Names of the files that foolbox has."""
    names = ['cifar10_00_3.png', 'cifar10_01_8.png', 'cifar100_00_3.png', 'LICENSE']
    folder = tmp_path / 'package'
    folder.mkdir()

    def files(package):
        if package != 'foolbox':
            raise metadata.PackageNotFoundError(package)
        paths = [metadata.PackagePath(name) for name in names]
        for path in paths:
            path.dist = metadata.PathDistribution(folder / 'info')
            (folder / path.name).write_text(path.name)
        return paths

    monkeypatch.setattr(metadata, 'files', files)
    return names


def test_folders_are_classes(tool, package, tmp_path):
    tool.main(['--out-dir', str(tmp_path)])
    written = {
        path.relative_to(tmp_path / 'cifar10_samples').as_posix(): path.read_text()
        for path in (tmp_path / 'cifar10_samples').rglob('*.png')
    }
    assert written == {
        'cat/00.png': 'cifar10_00_3.png',
        'ship/01.png': 'cifar10_01_8.png',
    }


def test_missing(tool, package, tmp_path):
    del package[:2]
    with pytest.raises(FileNotFoundError, match=r'foolbox must be installed .*demo'):
        tool.main(['--out-dir', str(tmp_path)])
    assert not (tmp_path / 'cifar10_samples').exists()


def test_classes_are_those_of_the_data_set(tool):
    assert list(tool.CLASSES) == list(CIFAR10.METAINFO['classes'])


@pytest.mark.skipif(not find_spec('foolbox'), reason='foolbox is not installed')
def test_images_are_those_of_the_data_set(tool, shared, tmp_path):
    tool.main(['--out-dir', str(tmp_path)])
    path = shared / 'data/cifar10/cifar-10-batches-py/test_batch.xz'
    with lzma.open(path) as file:
        batch = pickle.load(file, encoding='latin1')
    images = batch['data'].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    paths = sorted((tmp_path / 'cifar10_samples').rglob('*.png'), key=lambda p: p.name)
    assert len(paths) == 20
    for path, expected, label in zip(paths, images, batch['labels']):
        assert path.parent.name == tool.CLASSES[label]
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)
