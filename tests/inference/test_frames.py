import warnings

import cv2
import numpy as np
import pytest

from mdeq_mm.inference import open_frames, video_writer

NO_VIDEO = {
    'empty.mp4': b'',
    'text.mp4': b'no video at all, but a text' * 99,
    'zeros.avi': bytes(10000),
    'noise.mkv': np.random.default_rng(0).bytes(10000),
}


@pytest.fixture
def images(texture):
    return [texture(seed, (48, 64)) for seed in range(8)]


@pytest.fixture
def folder(images, tmp_path):
    path = tmp_path / 'frames'
    path.mkdir()
    for index, image in enumerate(images):
        cv2.imwrite(str(path / f'{index}.png'), image)
    (path / 'notes.txt').touch()
    return path


@pytest.fixture
def video(images, tmp_path):
    path = tmp_path / 'video.avi'
    with video_writer(path, (48, 64), 12) as write:
        for image in images:
            write(image[..., ::-1])
    return path


class TestFolder:
    def test_frames_in_the_order_of_their_names(self, folder, images):
        frames = open_frames(folder)
        assert (frames.size, frames.fps) == ((48, 64), 25)
        for _ in range(2):
            assert np.array_equal(list(frames), images)

    def test_number(self, folder):
        assert len(list(open_frames(folder, 3))) == 3

    def test_no_frame(self, tmp_path):
        (tmp_path / 'notes.txt').touch()
        with pytest.raises(ValueError, match=r'must hold frames, .*\.png, got none'):
            open_frames(tmp_path)

    @pytest.mark.parametrize('index', [0, 2])
    def test_unreadable(self, folder, index):
        (folder / f'{index}.png').write_bytes(b'no image')
        with pytest.raises(ValueError, match=f'{index}.png cannot be read as an image'):
            list(open_frames(folder))


class TestVideo:
    def test_frames(self, video, images):
        frames = open_frames(video)
        assert (frames.size, frames.fps) == ((48, 64), 12)
        for _ in range(2):
            read = np.array(list(frames), dtype=float)
            assert np.abs(read - images).mean() < 6

    def test_number(self, video):
        with warnings.catch_warnings(action='error'):
            assert len(list(open_frames(video, 3))) == 3
            assert len(list(open_frames(video, 9))) == 8

    @pytest.mark.parametrize('name', NO_VIDEO)
    def test_no_video(self, tmp_path, name):
        (tmp_path / name).write_bytes(NO_VIDEO[name])
        with pytest.raises(ValueError, match=f'{name} cannot be read as a video'):
            open_frames(tmp_path / name)

    def test_an_image(self, folder):
        with pytest.raises(ValueError, match=r'or a folder of frames, .* ending \.png'):
            open_frames(folder / '0.png')

    def test_cut_off(self, video):
        content = video.read_bytes()
        video.write_bytes(content[: len(content) * 6 // 10])
        with pytest.warns(UserWarning, match='promises 8 frames, [1-7] can be read'):
            list(open_frames(video))


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no\.mp4 must be a video or a folder'):
        open_frames(tmp_path / 'no.mp4')


@pytest.mark.parametrize('num_frames', [0, 1.5])
def test_bad_number(folder, num_frames):
    with pytest.raises(ValueError, match=f'num_frames .* got {num_frames}'):
        open_frames(folder, num_frames)
