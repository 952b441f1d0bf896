import cv2
import numpy as np
import pytest
import torch

from mdeq_mm.deq import Unrolled
from mdeq_mm.inference import (
    FrameFolder,
    Start,
    open_frames,
    segment_frames,
    write_overlay_video,
)

from .conftest import CLASSIFIER, RESNET

TOL, BUDGET = 1e-4, 60
SOLVER = {
    'model.backbone.forward_solver.tol': TOL,
    'model.backbone.forward_solver.max_evals': BUDGET,
}


@pytest.fixture
def predictor(make_predictor):
    return make_predictor(**SOLVER)


@pytest.fixture
def states(predictor):
    """The state of each solve, as they are made."""
    found = []
    layer = predictor.model.backbone.equilibrium
    with layer.register_pass_hook(lambda _, passed: found.append(passed.state)):
        yield found


def records_of(*args, **kwargs):
    return [record for _, _, record in segment_frames(*args, **kwargs)]


def deviation(state, other):
    return ((state - other).norm() / other.norm()).item()


class TestPan:
    """Sixty frames with a cut in the middle, and a model that is a contraction."""

    @pytest.fixture
    def cut(self):
        """Images move this contraction little: frames by 5e-4, the cut by 7e-3."""
        return 3e-3

    def test_cut(self, predictor, panned, cut):
        starts = [r.start for r in records_of(predictor, panned[25:35], cut)]
        expected = [Start.PREVIOUS] * 10
        expected[0], expected[5] = Start.FIRST, Start.CUT
        assert starts == expected

    @pytest.mark.slow
    def test_half_of_the_evaluations_are_saved(self, predictor, panned, cut):
        """To the same residual: every frame meets the tolerance both ways."""
        records = records_of(predictor, panned, cut, compare=True)
        assert len(records) == 60
        assert all(r.converged and r.residual <= TOL for r in records)
        evals = [r.n_evals for r in records]
        from_zero = [r.n_evals_from_zero for r in records]
        for frame, n_evals in zip(panned[::10], from_zero[::10]):
            (solve,) = predictor(frame).solves
            assert (solve.n_evals, solve.converged) == (n_evals, True)
        assert max(from_zero) < BUDGET
        assert sum(evals) <= sum(from_zero) / 2

    def test_evaluations_are_those_of_the_cell(self, predictor, panned, cut):
        calls = []
        cell = predictor.model.backbone.equilibrium.cell
        with cell.register_forward_hook(lambda *_: calls.append(1)):
            records = records_of(predictor, panned[25:35], cut)
        assert sum(r.n_evals for r in records) == len(calls)

    def test_frames_after_the_cut(self, predictor, panned, cut, states):
        """They equal those of a cold start within the tolerance."""
        frames = panned[27:34]
        records_of(predictor, frames, cut)
        warm = states.copy()
        states.clear()
        for frame in frames:
            predictor(frame)
        # The frame of the cut begins as if it were the first.
        assert torch.equal(warm[3], states[3])
        distances = [deviation(*pair) for pair in zip(warm[4:], states[4:])]
        assert 0 < max(distances) <= 20 * TOL


def test_another_size_starts_anew(predictor, texture):
    frames = [texture(0, size) for size in ((64, 64), (64, 64), (48, 64), (48, 64))]
    records = records_of(predictor, frames)
    assert [r.start for r in records] == [
        *(Start.FIRST, Start.PREVIOUS, Start.SIZE, Start.PREVIOUS)
    ]
    assert records[1].n_evals == records[3].n_evals == 1
    assert records[2].n_evals == predictor(frames[2]).solves[0].n_evals > 1


def test_a_pipeline_that_makes_sizes_equal(make_predictor, texture):
    """The state has one size then, that of the frames differs."""
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 64)),
        dict(type='PackSegInputs'),
    ]
    predictor = make_predictor(**SOLVER, **{'test_dataloader.dataset.pipeline': steps})
    frames = [texture(0, (64, 64)), texture(0, (96, 96))]
    records = records_of(predictor, frames)
    assert [r.start for r in records] == [Start.FIRST, Start.SIZE]
    assert records[1].n_evals == predictor(frames[1]).solves[0].n_evals


class TestRunsDoNotSeeEachOther:
    def test_one_after_the_other(self, predictor, panned):
        first = records_of(predictor, panned[:3])
        assert records_of(predictor, panned[:3]) == first
        assert predictor(panned[0]).solves[0].n_evals == first[0].n_evals

    def test_at_once(self, predictor, panned):
        """Two videos, and the caller's own predictions between their frames."""
        alone = [records_of(predictor, panned[i : i + 3]) for i in (0, 30)]
        streams = [segment_frames(predictor, panned[i : i + 3]) for i in (0, 30)]
        for number in range(3):
            for records, stream in zip(alone, streams):
                assert next(stream)[2] == records[number]
                assert predictor(panned[0]).solves[0].from_zero

    def test_a_run_that_was_left(self, predictor, panned):
        stream = segment_frames(predictor, panned)
        next(stream)
        stream.close()
        layer = predictor.model.backbone.equilibrium
        assert not layer._overrides()
        assert not layer._pass_hooks


class TestOverlay:
    @pytest.fixture
    def frames(self, panned, tmp_path):
        folder = tmp_path / 'frames'
        folder.mkdir()
        for index, frame in enumerate(panned[28:32]):
            cv2.imwrite(str(folder / f'{index}.png'), frame)
        return FrameFolder(folder)

    def test_plays(self, predictor, frames, tmp_path):
        path = tmp_path / 'out/overlay.avi'
        records = write_overlay_video(predictor, frames, path, cut=3e-3)
        assert [r.start is Start.CUT for r in records] == [False, False, True, False]
        video = open_frames(path)
        assert (video.size, video.fps) == ((64, 64), 25)
        read = list(video)
        assert len(read) == 4
        for overlay, frame in zip(read, frames):
            expected = predictor.draw(frame, predictor(frame))[..., ::-1].astype(float)
            assert np.abs(overlay - expected).mean() < 8

    def test_options(self, predictor, frames, tmp_path):
        path = tmp_path / 'overlay.mp4'
        records = write_overlay_video(
            predictor, frames, path, fps=12, codec='MJPG', compare=True
        )
        assert all(r.n_evals_from_zero > 1 for r in records)
        assert open_frames(path).fps == 12

    def test_a_frame_that_cannot_be_read(self, predictor, frames, tmp_path):
        (tmp_path / 'frames/2.png').write_bytes(b'')
        with pytest.raises(ValueError, match=r'2\.png cannot be read as an image'):
            write_overlay_video(predictor, frames, tmp_path / 'overlay.mp4')
        assert [path.name for path in tmp_path.glob('*overlay*')] == []
        assert [path.name for path in tmp_path.glob('.*')] == []


class TestBadModels:
    def test_classifier(self, make_predictor, panned):
        with pytest.raises(ValueError, match=r"toolbox must be .* got 'mmpretrain'"):
            records_of(make_predictor(CLASSIFIER), panned)

    def test_another_backbone(self, make_predictor, panned):
        with pytest.raises(ValueError, match='EncoderDecoder has none'):
            records_of(make_predictor(RESNET), panned)

    def test_unrolled(self, make_predictor, panned):
        def unroll(model):
            model.backbone.equilibrium.mode = Unrolled(2)

        with pytest.raises(ValueError, match='got one of the unrolled phase'):
            records_of(make_predictor(change=unroll), panned)

    def test_sliding_windows(self, make_predictor, panned):
        predictor = make_predictor(
            **{
                'model.test_cfg.mode': 'slide',
                'model.test_cfg.crop_size': (32, 32),
                'model.test_cfg.stride': (32, 32),
            }
        )
        with pytest.raises(ValueError, match=r"test_cfg.mode must .* got 'slide'"):
            records_of(predictor, panned)

    @pytest.mark.parametrize('cut', [0, -1])
    def test_cut(self, predictor, panned, cut):
        with pytest.raises(ValueError, match=f'limit must be .* got {cut}'):
            records_of(predictor, panned, cut)
