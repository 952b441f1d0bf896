import cv2
import numpy as np
import pytest
import torch

from mdeq_mm.benchmark import Saving, compare_starts, pan, read_frames, solve_frames
from mdeq_mm.checkpoints import convert_official_state_dict
from mdeq_mm.deq import BroydenSolver, PreviousGuess, Unrolled, ZeroGuess
from mdeq_mm.models import MDEQ


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)


class TestPan:
    def test_whole_pixels(self, image):
        frames = pan(image, 5, 2, (64, 64))
        left = (90 - 64 - 8) // 2
        for index, frame in enumerate(frames):
            start = left + 2 * index
            assert np.array_equal(frame, image[3:67, start : start + 64])

    def test_between_pixels(self, image):
        first, second = pan(image, 2, 0.5, (64, 64))
        assert second.shape == first.shape == (64, 64, 3)
        # The window moves from column 12.75 to column 13.25.
        columns = [image[3:67, start : start + 64].astype(float) for start in (13, 14)]
        expected = 0.75 * columns[0] + 0.25 * columns[1]
        assert np.abs(second - expected).max() <= 1

    @pytest.mark.parametrize('size', [(71, 64), (64, 87)])
    def test_image_too_small(self, image, size):
        with pytest.raises(ValueError, match=rf'5 frames of {size[0]}x.* got 70x90'):
            pan(image, 5, 1, size)


class TestReadFrames:
    def write(self, folder, images):
        folder.mkdir()
        for index, image in enumerate(images):
            cv2.imwrite(str(folder / f'{index}.png'), image)
        (folder / 'notes.txt').touch()
        return folder

    def test_order_and_number(self, image, tmp_path):
        images = [image, image // 2, image // 3]
        frames = read_frames(self.write(tmp_path / 'frames', images), 2)
        assert len(frames) == 2
        for frame, expected in zip(frames, images):
            assert np.array_equal(frame, expected)

    def test_two_sizes(self, image, tmp_path):
        folder = self.write(tmp_path / 'frames', [image, image[:60]])
        with pytest.raises(ValueError, match='frames of one size, got 2 of sizes'):
            read_frames(folder, 9)

    def test_one_frame(self, image, tmp_path):
        folder = self.write(tmp_path / 'frames', [image])
        with pytest.raises(ValueError, match='at least two .* got 1 of sizes'):
            read_frames(folder, 9)


@pytest.mark.parametrize('golden', ['microseg'], indirect=True)
def test_pan_over_a_photo(golden, shared):
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
        forward_solver=BroydenSolver(max_evals=100, tol=1e-2),
    ).eval()
    state = convert_official_state_dict(golden.state, golden.task)
    prefix = 'backbone.'
    backbone.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    photo = cv2.imread(str(shared / 'data/photos/dog.jpg'))
    frames = pan(photo, 6, 0.1, (64, 96))
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    images = [
        ((torch.from_numpy(f[..., ::-1].copy()).permute(2, 0, 1) - mean) / std)[None]
        for f in frames
    ]
    layer = backbone.equilibrium
    zero, zero_reached = solve_frames(backbone, images, ZeroGuess())
    previous, previous_reached = solve_frames(backbone, images, PreviousGuess())
    assert zero_reached.all()
    assert previous_reached.all()
    assert len(zero) == len(previous) == 5
    assert previous.median() <= zero.median() / 2
    assert isinstance(layer.initial_guess, ZeroGuess)


class TestCompareStarts:
    def test_frames_that_do_not_change(self, backbone, images):
        frames = [images[:1]] * 3
        # The unrolled mode, which a checkpoint may bring, is left for the solves.
        backbone.equilibrium.mode = Unrolled(2)
        loose, tight = compare_starts(backbone, frames, (1e-2, 1e-3), 100)
        assert (loose.tol, tight.tol) == (1e-2, 1e-3)
        assert loose.previous == tight.previous == 1
        assert 1 < loose.zero <= tight.zero
        assert loose.zero_reached == loose.previous_reached == 1
        assert backbone.equilibrium.mode == Unrolled(2)

    def test_tolerance_that_is_not_reached(self, backbone, images):
        (saving,) = compare_starts(backbone, [images[:1], images[1:]], (1e-9,), 2)
        assert saving == Saving(1e-9, None, None, 0, 0)
