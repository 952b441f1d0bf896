import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mdeq_mm.benchmark import NamedSamples, name_samples, read_image


class Numbers(Dataset):
    """One of them cannot be loaded."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == 3:
            raise OSError('no such\nluck')
        return index


class Files(Numbers):
    def get_data_info(self, index):
        return dict(img_path=f'{index}.jpg', seg_map_path=f'{index}.png', label=1)


class TestReadImage:
    @pytest.mark.parametrize('suffix', ['.png', '.jpg'])
    def test_image(self, tmp_path, suffix):
        image = np.full((4, 6, 3), (10, 20, 30), np.uint8)
        path = tmp_path / f'image{suffix}'
        cv2.imwrite(str(path), image)
        assert np.abs(read_image(path).astype(int) - image).max() < 3
        assert read_image(str(path)).shape == (4, 6, 3)

    def test_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[274] = 6
        Image.new('RGB', (6, 4)).save(tmp_path / 'a.jpg', exif=exif)
        assert read_image(tmp_path / 'a.jpg').shape == (6, 4, 3)
        ignoring = read_image(tmp_path / 'a.jpg', 'color_ignore_orientation')
        assert ignoring.shape == (4, 6, 3)

    @pytest.mark.parametrize('backend', ['cv2', 'pillow'])
    @pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n'])
    def test_unreadable(self, tmp_path, content, backend):
        (tmp_path / 'bad.png').write_bytes(content)
        mmcv.use_backend(backend)
        try:
            with pytest.raises(
                ValueError, match=r'/bad.png cannot be read as an image'
            ):
                read_image(tmp_path / 'bad.png')
        finally:
            mmcv.use_backend('cv2')

    def test_directory(self, tmp_path):
        (tmp_path / 'a.png').mkdir()
        with pytest.raises(ValueError, match=r'/a.png cannot be read'):
            read_image(tmp_path / 'a.png')

    def test_absent(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='absent.png'):
            read_image(tmp_path / 'absent.png')


class TestNamedSamples:
    def test_samples(self):
        named = NamedSamples(Numbers())
        assert [named[i] for i in (0, 1, 2, 4)] == [0, 1, 2, 4]
        assert len(named) == 5

    @pytest.mark.parametrize(
        ('dataset', 'what'),
        [(Numbers(), 'sample 3'), (Files(), r'sample 3 \(3.jpg, 3.png\)')],
    )
    def test_failure(self, dataset, what):
        reason = 'cannot be loaded: OSError: no such luck$'
        with pytest.raises(ValueError, match=f'^{what} {reason}'):
            NamedSamples(dataset)[3]


class TestNameSamples:
    def test_same_batches(self):
        loader = DataLoader(range(7), batch_size=3, collate_fn=list, drop_last=True)
        assert list(name_samples(loader)) == list(loader) == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize('workers', [0, 1])
    def test_failure(self, workers):
        loader = name_samples(DataLoader(Files(), num_workers=workers))
        with pytest.raises(ValueError, match=r'sample 3 \(3.jpg, 3.png\) cannot be'):
            list(loader)
