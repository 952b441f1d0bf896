"""What it saves to start each frame of a video from the frame before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..apis import single_layer, solving_mode
from ..deq import (
    EquilibriumLayer,
    FixedPointSolver,
    ForwardPass,
    InitialGuess,
    PreviousGuess,
    ZeroGuess,
)
from .images import read_image

SUFFIXES = ('.jpg', '.jpeg', '.png')


def pan(
    image: np.ndarray, num_frames: int, speed: float, size: Sequence[int]
) -> list[np.ndarray]:
    """Cuts the frames of a pan to the right out of an image.

    Between pixels it interpolates bilinearly.

    Args:
        image (np.ndarray): The image, ``(H, W, 3)``.
        num_frames (int): Number of frames.
        speed (float): Pixels per frame.
        size (Sequence[int]): Height and width of the frames.

    Returns:
        list[np.ndarray]: The frames, ``(*size, 3)``.

    Raises:
        ValueError: If the image is too small.
    """
    height, width = size
    path = speed * (num_frames - 1)
    if image.shape[0] < height or image.shape[1] < width + path:
        raise ValueError(
            f'{num_frames} frames of {height}x{width} at {speed:g} pixels per frame '
            f'take an image of at least {height}x{int(np.ceil(width + path))}, '
            f'got {image.shape[0]}x{image.shape[1]}'
        )
    left, middle = (image.shape[1] - width - path) / 2, (image.shape[0] - 1) / 2
    return [
        cv2.getRectSubPix(
            image, (width, height), (left + (width - 1) / 2 + speed * index, middle)
        )
        for index in range(num_frames)
    ]


def read_frames(folder: Path, num_frames: int) -> list[np.ndarray]:
    """Reads the images of a folder as frames, in the order of their names.

    Args:
        folder (Path): The folder.
        num_frames (int): Number of frames at most.

    Returns:
        list[np.ndarray]: The frames, BGR, ``(H, W, 3)``.

    Raises:
        ValueError: If there are fewer than two frames, not all of one size, or one
            cannot be read.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    frames = [read_image(path) for path in paths[:num_frames]]
    sizes = {frame.shape[:2] for frame in frames}
    if len(frames) < 2 or len(sizes) > 1:
        raise ValueError(
            f'{folder} must hold at least two .jpg or .png frames of one size, '
            f'got {len(frames)} of sizes {sorted(sizes)}'
        )
    return frames


def preprocess(frames: Sequence[np.ndarray], model: BaseModel) -> list[Tensor]:
    """Normalises frames as a model does.

    Args:
        frames (Sequence[np.ndarray]): BGR frames, ``(H, W, 3)``.
        model (BaseModel): The model.

    Returns:
        list[Tensor]: The frames, ``(1, 3, H, W)``, on the device of the model.
    """
    tensors = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    return [model.data_preprocessor(dict(inputs=[t]))['inputs'] for t in tensors]


@torch.no_grad()
def solve_frames(
    backbone: nn.Module,
    images: Sequence[Tensor],
    guess: InitialGuess,
    solver: Optional[FixedPointSolver] = None,
) -> tuple[Tensor, Tensor]:
    """Solves frame after frame.

    Args:
        backbone (nn.Module): In evaluation mode, with one equilibrium layer, which
            keeps its own settings.
        images (Sequence[Tensor]): Normalised frames, ``(1, 3, H, W)``.
        guess (InitialGuess): Where the solves start.
        solver (FixedPointSolver, optional): The solver. Defaults to None, that of the
            layer.

    Returns:
        tuple[Tensor, Tensor]: For each frame but the first the number of evaluations,
        int64, and whether it converged, bool, on the CPU.
    """
    layer = single_layer(backbone)
    n_evals: list[Tensor] = []
    converged: list[Tensor] = []

    def observe(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        if forward_pass.solution is not None:
            n_evals.append(forward_pass.solution.n_evals)
            converged.append(forward_pass.solution.converged)

    mode = solving_mode(layer)
    if solver is not None:
        mode = replace(mode, solver=solver)
    observing = layer.register_pass_hook(observe)
    with observing, layer.using(mode=mode, initial_guess=guess.eval()):
        for image in images:
            backbone(image)
    return torch.cat(n_evals)[1:].cpu(), torch.cat(converged)[1:].cpu()


@dataclass
class Saving:
    """What the previous equilibrium saves at a tolerance.

    Attributes:
        tol (float): The tolerance.
        zero (float, optional): Median number of evaluations from zero, over the frames
            that reach the tolerance both ways. None if no frame does.
        previous (float, optional): The same from the equilibrium of the frame before.
        zero_reached (float): Share of the frames that reach it from zero.
        previous_reached (float): The same from the equilibrium of the frame before.
    """

    tol: float
    zero: Optional[float]
    previous: Optional[float]
    zero_reached: float
    previous_reached: float


def compare_starts(
    backbone: nn.Module,
    images: Sequence[Tensor],
    tolerances: Sequence[float],
    max_evals: int,
) -> Iterator[Saving]:
    """Solves each frame from zero and from the frame before, to the same tolerance.

    Args:
        backbone (nn.Module): In evaluation mode, with one equilibrium layer.
        images (Sequence[Tensor]): Normalised frames, ``(1, 3, H, W)``, at least two.
        tolerances (Sequence[float]): Tolerances, in the measure of the solver.
        max_evals (int): The budget.

    Yields:
        Saving: What it saves, for one tolerance after the other.
    """
    configured = solving_mode(single_layer(backbone)).solver
    for tol in tolerances:
        solver = replace(configured, tol=tol, max_evals=max_evals)
        zero, zero_reached = solve_frames(backbone, images, ZeroGuess(), solver)
        previous, previous_reached = solve_frames(
            backbone, images, PreviousGuess(), solver
        )
        both = zero_reached & previous_reached
        yield Saving(
            tol,
            _median(zero[both]),
            _median(previous[both]),
            zero_reached.float().mean().item(),
            previous_reached.float().mean().item(),
        )


def _median(values: Tensor) -> Optional[float]:
    return values.double().quantile(0.5).item() if values.numel() else None
