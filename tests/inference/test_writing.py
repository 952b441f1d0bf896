import cv2
import numpy as np
import pytest

from mdeq_mm.inference import (
    check_codec,
    open_frames,
    video_writer,
    whole_file,
    write_image,
)


def files(folder):
    return {path.name for path in folder.rglob('*')}


def write_all(path, frames, fps=10, codec=None):
    with video_writer(path, (64, 64), fps, codec) as write:
        for frame in frames:
            write(frame)


class TestWholeFile:
    def test_appears_at_the_end(self, tmp_path):
        path = tmp_path / 'new/file.txt'
        with whole_file(path) as part:
            part.write_text('content')
            assert part.suffix == '.txt'
            assert not path.exists()
        assert path.read_text() == 'content'
        assert files(tmp_path) == {'new', 'file.txt'}

    def test_after_an_error_the_one_before_is_there(self, tmp_path):
        path = tmp_path / 'file.txt'
        path.write_text('before')

        def write():
            with whole_file(path) as part:
                part.write_text('half')
                raise RuntimeError

        with pytest.raises(RuntimeError):
            write()
        assert path.read_text() == 'before'
        assert files(tmp_path) == {'file.txt'}


class TestImage:
    def test_colours(self, tmp_path):
        image = np.full((4, 5, 3), (200, 100, 0), np.uint8)
        write_image(tmp_path / 'image.png', image)
        assert np.array_equal(cv2.imread(str(tmp_path / 'image.png')), image[..., ::-1])

    def test_bad_ending(self, tmp_path):
        with pytest.raises(ValueError, match=r'ending of the picture .* got image\.md'):
            write_image(tmp_path / 'image.md', np.zeros((4, 5, 3), np.uint8))
        assert files(tmp_path) == set()


class TestVideo:
    @pytest.mark.parametrize('suffix', ['.mp4', '.avi', '.mkv', '.mov', '.MP4'])
    def test_plays(self, tmp_path, suffix, panned):
        path = tmp_path / f'video{suffix}'
        with video_writer(path, (64, 64), 12.5) as write:
            for frame in panned[:5]:
                write(frame)
            assert not path.exists()
        frames = open_frames(path)
        assert (frames.size, frames.fps) == ((64, 64), 12.5)
        read = np.array(list(frames), dtype=float)[..., ::-1]
        assert len(read) == 5
        assert np.abs(read - panned[:5]).mean() < 8
        assert files(tmp_path) == {path.name}

    def test_frames_of_other_sizes(self, tmp_path, texture):
        with video_writer(tmp_path / 'video.mp4', (64, 48), 10) as write:
            for size in ((64, 48), (32, 24), (97, 65)):
                write(texture(0, size))
        first, *others = np.array(list(open_frames(tmp_path / 'video.mp4')), float)
        assert first.shape == (64, 48, 3)
        for other in others:
            assert np.abs(other - first).mean() < 20

    def test_odd_size(self, tmp_path, texture):
        with video_writer(tmp_path / 'video.mp4', (65, 97), 10) as write:
            write(texture(0, (65, 97)))
        (frame,) = open_frames(tmp_path / 'video.mp4')
        assert frame.shape == (64, 96, 3)

    def test_nothing_is_left_after_an_error(self, tmp_path, panned):
        frames = [panned[0], None]
        with pytest.raises(AttributeError, match='shape'):
            write_all(tmp_path / 'video.mp4', frames)
        assert files(tmp_path) == set()

    def test_codec_that_cannot_write(self, tmp_path, capfd):
        with pytest.raises(ValueError, match=r'codec must be .* mp4v, got XXXX'):
            write_all(tmp_path / 'video.mp4', [], codec='XXXX')
        assert files(tmp_path) == set()
        capfd.readouterr()

    def test_frames_that_got_lost(self, tmp_path, monkeypatch, panned):
        monkeypatch.setattr('mdeq_mm.inference.writing._count_frames', lambda path: 1)
        with pytest.raises(OSError, match=r'video\.mp4 has 1 of 2 frames'):
            write_all(tmp_path / 'video.mp4', panned[:2])
        assert files(tmp_path) == set()

    @pytest.mark.parametrize('fps', [0, float('inf')])
    def test_bad_fps(self, tmp_path, fps):
        with pytest.raises(ValueError, match=f'fps must be .* got {fps}'):
            write_all(tmp_path / 'video.mp4', [], fps=fps)


@pytest.mark.parametrize('codec', ['', 'h264!', 'äöüß'])
def test_bad_codec(codec):
    with pytest.raises(ValueError, match='codec must be four characters'):
        check_codec('video.mp4', codec)


def test_bad_ending():
    with pytest.raises(ValueError, match=r'one of \.mp4, .* got video\.gif'):
        check_codec('video.gif')
