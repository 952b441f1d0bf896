"""Segmentation of videos: each equilibrium starts from that of the frame before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from typing import Optional, Union

import numpy as np

from ..apis import single_layer
from ..deq import Equilibrium, EquilibriumLayer, GuardedStart, PreviousGuess, ZeroGuess
from ..deq.checks import check_choice
from .frames import Frames
from .predictor import Prediction, Predictor, Solve
from .writing import video_writer


class Start(Enum):
    """Where the solve of a frame starts, and why."""

    FIRST = 'zero: the first frame'
    SIZE = 'zero: another size than the frame before'
    CUT = 'zero: a cut'
    PREVIOUS = 'the frame before'


@dataclass(frozen=True)
class FrameRecord:
    """What the segmentation of a frame took.

    Attributes:
        start (Start): Where the solve started.
        n_evals (int): Evaluations of ``f``. At a cut one of them shows that it is one.
        residual (float): Residual, in the measure of the solver.
        converged (bool): Whether it met the tolerance.
        n_evals_from_zero (int, optional): Evaluations that a start from zero takes.
            None if nobody asked.
    """

    start: Start
    n_evals: int
    residual: float
    converged: bool
    n_evals_from_zero: Optional[int] = None


def segment_frames(
    predictor: Predictor,
    frames: Iterable[np.ndarray],
    cut: float = 0.5,
    compare: bool = False,
) -> Iterator[tuple[np.ndarray, Prediction, FrameRecord]]:
    """Segments the frames of a video.

    The solve of a frame starts from the equilibrium of the frame before. It starts from
    zero where the frame has another size, and at a cut: where the first evaluation has
    a relative residual above ``cut``, see :class:`GuardedStart`. The state is that of
    this call alone.

    Args:
        predictor (Predictor): A segmentor with one equilibrium layer.
        frames (Iterable[np.ndarray]): The frames, BGR, uint8, ``(H, W, 3)``.
        cut (float): The residual above which a frame begins anew, above 0. From zero
            the residual is 1. Defaults to 0.5.
        compare (bool): Whether to solve each frame from zero as well, to count the
            evaluations. Defaults to False.

    Yields:
        tuple: The frame, its prediction and its record.

    Raises:
        ValueError: If ``cut`` is out of its range, the model is no segmentor with one
            equilibrium layer, is of the unrolled phase of a training, or predicts in
            sliding windows.
    """
    layer, mode = _check(predictor, cut)
    guess, zero = PreviousGuess().eval(), ZeroGuess()
    size = None
    for frame in frames:
        is_first, is_same_size = size is None, frame.shape == size
        size = frame.shape
        if not is_same_size:
            guess.reset()
        # Not around the yield, or it would reach into what the caller does meanwhile.
        with layer.using(mode=mode, initial_guess=guess):
            prediction = predictor(frame)
        solve = _only(prediction)
        start = Start.CUT if solve.from_zero else Start.PREVIOUS
        if not is_same_size:
            start = Start.FIRST if is_first else Start.SIZE
        from_zero = None
        if compare:
            with layer.using(initial_guess=zero):
                from_zero = _only(predictor(frame)).n_evals
        record = FrameRecord(
            start, solve.n_evals, solve.residual, solve.converged, from_zero
        )
        yield frame, prediction, record


def write_overlay_video(
    predictor: Predictor,
    frames: Frames,
    path: Union[str, PathLike[str]],
    fps: Optional[float] = None,
    codec: Optional[str] = None,
    cut: float = 0.5,
    compare: bool = False,
) -> list[FrameRecord]:
    """Segments a video and writes it with the segmentation laid over it.

    Args:
        predictor (Predictor): A segmentor with one equilibrium layer.
        frames (Frames): The frames. The written video has the size of the first one.
        path (str or Path): The video to write. It appears when it is whole.
        fps (float, optional): Frames per second. Defaults to None, those of ``frames``.
        codec (str, optional): See :func:`video_writer`. Defaults to None.
        cut (float): See :func:`segment_frames`. Defaults to 0.5.
        compare (bool): See :func:`segment_frames`. Defaults to False.

    Returns:
        list[FrameRecord]: A record per frame.

    Raises:
        ValueError: As :func:`segment_frames` and :func:`video_writer`.
        OSError: As :func:`video_writer`.
    """
    records = []
    fps = frames.fps if fps is None else fps
    with video_writer(path, frames.size, fps, codec) as write:
        for frame, prediction, record in segment_frames(
            predictor, frames, cut, compare
        ):
            write(predictor.draw(frame, prediction))
            records.append(record)
    return records


def _check(predictor: Predictor, cut: float) -> tuple[EquilibriumLayer, GuardedStart]:
    """Returns layer and mode of a video."""
    check_choice('toolbox', predictor.toolbox, ('mmseg',))
    layer = single_layer(predictor.model)
    mode = layer.mode
    if not isinstance(mode, Equilibrium):
        raise ValueError(
            'the model must be trained at its equilibrium, got one of the unrolled '
            'phase of a training, which has no equilibrium to start from'
        )
    test_mode = (predictor.model.test_cfg or {}).get('mode', 'whole')
    if test_mode != 'whole':
        raise ValueError(
            "model.test_cfg.mode must be 'whole' for a video, because the solve before "
            f'must be that of the frame before, got {test_mode!r}'
        )
    return layer, GuardedStart(mode.solver, mode.gradient, cut)


def _only(prediction: Prediction) -> Solve:
    (solve,) = prediction.solves
    return solve
