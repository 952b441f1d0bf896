import cv2
import numpy as np
import pytest

from mdeq_mm.inference import open_frames

SEGMENTOR = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


@pytest.fixture
def tool(load_tool):
    return load_tool('../demo/video_demo.py')


@pytest.fixture
def folder(tmp_path):
    """Twice the same frame, and a smaller one."""
    path = tmp_path / 'frames'
    path.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (64, 72, 3), np.uint8)
    for index, frame in enumerate((image, image, image[:48])):
        cv2.imwrite(str(path / f'{index}.png'), frame)
    return path


def test_folder(tool, save_model, folder, tmp_path, capsys):
    out = tmp_path / 'new/overlay.avi'
    tool.main([str(folder), *save_model(SEGMENTOR), '--out', str(out), '--compare'])
    text = capsys.readouterr().out
    for line in (
        'from zero',
        '3 of 3 frames reach the tolerance',
        '1 started from zero: the first frame',
        '1 started from the frame before',
        '1 started from zero: another size than the frame before',
        f'{out} written',
        f'{out.with_suffix(".png")} written',
    ):
        assert line in text
    assert 'cuts at' not in text
    video = open_frames(out)
    assert (len(list(video)), video.size, video.fps) == (3, (64, 72), 25)
    assert cv2.imread(str(out.with_suffix('.png'))).shape[0] > 400
    assert {path.name for path in out.parent.iterdir()} == {
        'overlay.avi',
        'overlay.png',
    }


def test_video_with_a_cut(tool, save_model, folder, tmp_path, capsys):
    """Any frame is a cut where the limit is tiny."""
    arguments = save_model(SEGMENTOR)
    clip = tmp_path / 'clip.avi'
    tool.main([str(folder), *arguments, '--out', str(clip), '--fps', '10'])
    tool.main([str(clip), *arguments, '--cut', '1e-9', '--num-frames', '2'])
    assert 'cuts at 1\n' in capsys.readouterr().out
    video = open_frames(tmp_path / 'overlay.mp4')
    assert (len(list(video)), video.fps) == (2, 10)


def test_an_error_leaves_nothing(tool, save_model, folder, tmp_path):
    (folder / '2.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'2\.png cannot be read as an image'):
        tool.main([str(folder), *save_model(SEGMENTOR)])
    assert {p.name for p in tmp_path.iterdir()} == {'frames', 'model.pth'}


def test_bad_ending_is_found_first(tool, folder):
    with pytest.raises(ValueError, match=r'ending of the video .* got out\.gif'):
        tool.main([str(folder), 'config', 'checkpoint', '--out', 'out.gif'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--num-frames', '0'], '--num-frames: must be at least 1, got 0'),
        (['--cut', '0'], '--cut: must be positive'),
        (['--fps', '-1'], '--fps: must be positive'),
    ],
)
def test_bad_arguments(tool, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), 'config', 'checkpoint', *options])
    assert message in capsys.readouterr().err


def test_out_is_the_source(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(['clip.mp4', 'config', 'checkpoint', '--out', './clip.mp4'])
    assert '--out must be another file than the video' in capsys.readouterr().err
