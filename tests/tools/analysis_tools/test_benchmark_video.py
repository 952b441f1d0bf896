"""The comparison of starts on video, by its command line."""

import cv2
import numpy as np
import pytest
import torch

from mdeq_mm import apis

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/benchmark_video.py')


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)


@pytest.fixture
def arguments(root, tmp_path, calm):
    """Config and checkpoint."""
    model = calm(apis.build_model(apis.load_config(root / CONFIG)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    return [str(root / CONFIG), str(tmp_path / 'model.pth')]


def test_folder_of_frames(tool, arguments, image, tmp_path, capsys):
    folder = tmp_path / 'frames'
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f'{index}.png'), image)
    tool.main([*arguments, str(folder), '--tol', '1e-2', '1e-3'])
    *_, loose, tight = text = capsys.readouterr().out.splitlines()
    assert any('3 frames of 70x90' in line for line in text)
    for line, tol in ((loose, 1e-2), (tight, 1e-3)):
        values = line.replace('%', '').split()
        assert float(values[0]) == tol
        assert float(values[1]) > float(values[2]) == 1
        assert values[4:] == ['100', '100']


@pytest.mark.parametrize('content', [b'', b'no image'])
@pytest.mark.parametrize('source', ['frames', 'frames/1.png'])
def test_unreadable(tool, root, image, tmp_path, content, source):
    folder = tmp_path / 'frames'
    folder.mkdir()
    cv2.imwrite(str(folder / '0.png'), image)
    (folder / '1.png').write_bytes(content)
    with pytest.raises(ValueError, match=r'frames/1.png cannot be read as an image'):
        tool.main([str(root / CONFIG), 'model.pth', str(tmp_path / source)])


def test_pan_and_a_tolerance_out_of_reach(tool, arguments, image, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    tool.main(
        [
            *(*arguments, str(tmp_path / 'image.png'), '--num-frames', '2'),
            *('--speed', '3', '--size', '64', '72', '--tol', '1e-6'),
            *('--max-evals', '2'),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert any('2 frames of 64x72' in line for line in lines)
    assert lines[-1].split() == ['1e-06', '-', '-', '-', '0%', '0%']


def test_no_equilibrium(tool, root, image, tmp_path):
    config = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'
    model = apis.build_model(apis.load_config(root / config))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    arguments = [root / config, tmp_path / 'model.pth', tmp_path / 'image.png']
    with pytest.raises(ValueError, match='ResNetV1c has none'):
        tool.main([*map(str, arguments), '--size', '8', '8', '--num-frames', '2'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--num-frames', '1'], '--num-frames: must be at least 2, got 1'),
        (['--max-evals', '0'], '--max-evals: must be at least 1, got 0'),
        (['--speed', '-1'], '--speed: must not be negative'),
        (['--size', '0', '8'], '--size: must be at least 1, got 0'),
        (['--tol', '0'], '--tol: must be positive'),
    ],
)
def test_bad_arguments(tool, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        tool.main(['config', 'checkpoint', str(tmp_path), *options])
    assert message in capsys.readouterr().err


def test_missing_source(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(['config', 'checkpoint', str(tmp_path / 'no.png')])
    assert 'source must be an image or a folder' in capsys.readouterr().err
