import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mdeq_mm.checkpoints import convert_official_state_dict
from mdeq_mm.deq import BroydenSolver, PreviousGuess, ZeroGuess
from mdeq_mm.models import MDEQ
from mdeq_mm.utils.launch import build_model

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/benchmark_video.py')


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)


class TestPan:
    def test_whole_pixels(self, tool, image):
        frames = tool.pan(image, 5, 2, (64, 64))
        left = (90 - 64 - 8) // 2
        for index, frame in enumerate(frames):
            start = left + 2 * index
            assert np.array_equal(frame, image[3:67, start : start + 64])

    def test_between_pixels(self, tool, image):
        first, second = tool.pan(image, 2, 0.5, (64, 64))
        assert second.shape == first.shape == (64, 64, 3)
        # The window moves from column 12.75 to column 13.25.
        columns = [image[3:67, start : start + 64].astype(float) for start in (13, 14)]
        expected = 0.75 * columns[0] + 0.25 * columns[1]
        assert np.abs(second - expected).max() <= 1

    @pytest.mark.parametrize('size', [(71, 64), (64, 87)])
    def test_image_too_small(self, tool, image, size):
        with pytest.raises(ValueError, match=rf'5 frames of {size[0]}x.* got 70x90'):
            tool.pan(image, 5, 1, size)


@pytest.mark.parametrize('golden', ['microseg'], indirect=True)
def test_pan_over_a_photo(tool, golden, shared):
    """A slow pan takes half of the evaluations at most, to the same tolerance."""
    config = golden.config
    backbone = MDEQ(
        arch=dict(
            channels=config['num_channels'],
            expansion=config['expansion'],
            num_groups=config['num_groups'],
            post_norm_affine=config['post_gn_affine'],
            downsample_times=config['downsample_times'],
        ),
        forward_solver=BroydenSolver(100, tol=1e-2),
    ).eval()
    state = convert_official_state_dict(golden.state, golden.task)
    prefix = 'backbone.'
    backbone.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    photo = cv2.imread(str(shared / 'data/photos/dog.jpg'))
    frames = tool.pan(photo, 6, 0.1, (64, 96))
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    images = [
        ((torch.from_numpy(f[..., ::-1].copy()).permute(2, 0, 1) - mean) / std)[None]
        for f in frames
    ]
    layer = backbone.equilibrium
    cold, cold_reached = tool.solve_frames(backbone, layer, images, ZeroGuess())
    warm, warm_reached = tool.solve_frames(backbone, layer, images, PreviousGuess())
    assert cold_reached.all()
    assert warm_reached.all()
    assert len(cold) == len(warm) == 5
    assert warm.median() <= cold.median() / 2
    assert isinstance(layer.initial_guess, ZeroGuess)


class TestMain:
    @pytest.fixture
    def arguments(self, root, tmp_path, calm):
        cfg = Config.fromfile(root / CONFIG)
        model = calm(build_model(cfg))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        return [str(root / CONFIG), str(tmp_path / 'model.pth')]

    def test_folder_of_frames(self, tool, arguments, image, tmp_path, capsys):
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

    def test_frames_of_two_sizes(self, tool, arguments, image, tmp_path):
        folder = tmp_path / 'frames'
        folder.mkdir()
        cv2.imwrite(str(folder / '0.png'), image)
        cv2.imwrite(str(folder / '1.png'), image[:60])
        with pytest.raises(ValueError, match='frames of one size, got 2 of sizes'):
            tool.main([*arguments, str(folder)])

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (['--num-frames', '1'], '--num-frames must be at least 2, got 1'),
            (['--max-evals', '0'], '--max-evals must be at least 1, got 0'),
            (['--speed', '-1'], '--speed must not be negative'),
            (['--size', '0', '8'], '--size must be two positive sizes'),
            (['--tol', '0'], '--tol must be positive'),
        ],
    )
    def test_bad_arguments(self, tool, tmp_path, capsys, options, message):
        with pytest.raises(SystemExit):
            tool.parse_args(['config', 'checkpoint', str(tmp_path), *options])
        assert message in capsys.readouterr().err

    def test_missing_source(self, tool, tmp_path, capsys):
        with pytest.raises(SystemExit):
            tool.parse_args(['config', 'checkpoint', str(tmp_path / 'no.png')])
        assert 'source must be an image or a folder' in capsys.readouterr().err
