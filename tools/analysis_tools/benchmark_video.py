"""Counts what it saves to start each frame of a video from the frame before.

The frames are those of a folder, in the order of their names, or a window that pans
over an image. Each is solved from zero and from the equilibrium of the frame before, to
the same tolerance; frames that reach it both ways are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import cv2
import mmcv
import numpy as np
import torch
from mmengine.device import get_device
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mdeq_mm.deq import EquilibriumLayer, InitialGuess, PreviousGuess, ZeroGuess
from mdeq_mm.utils.launch import add_cfg_options, build_model, load_config


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        'source', type=Path, help='an image to pan over, or a folder of frames'
    )
    parser.add_argument(
        '--num-frames', type=int, default=60, help='at most; default: %(default)s'
    )
    parser.add_argument(
        '--speed',
        type=float,
        default=1.0,
        help='of the pan, in pixels a frame to the right; default: %(default)s',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        default=(192, 256),
        help='of the window that pans; default: 192 256',
    )
    parser.add_argument(
        '--tol',
        type=float,
        nargs='+',
        default=(1e-2, 1e-3, 1e-4),
        help='tolerances, in the measure of the solver; default: 1e-2 1e-3 1e-4',
    )
    parser.add_argument(
        '--max-evals', type=int, default=100, help='budget; default: %(default)s'
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.num_frames < 2:
        parser.error(f'--num-frames must be at least 2, got {args.num_frames}')
    if args.max_evals < 1:
        parser.error(f'--max-evals must be at least 1, got {args.max_evals}')
    if not args.speed >= 0:
        parser.error(f'--speed must not be negative, got {args.speed}')
    if min(args.size) < 1:
        parser.error(f'--size must be two positive sizes, got {args.size}')
    if not all(tol > 0 for tol in args.tol):
        parser.error(f'--tol must be positive, got {args.tol}')
    if not args.source.exists():
        parser.error(f'source must be an image or a folder, got {args.source}')
    return args


def pan(
    image: np.ndarray, num_frames: int, speed: float, size: Sequence[int]
) -> list[np.ndarray]:
    """Cuts frames out of an image ``(H, W, 3)``, between pixels bilinearly.

    Raises:
        ValueError: If the image is too small.
    """
    height, width = size
    path = speed * (num_frames - 1)
    if image.shape[0] < height or image.shape[1] < width + path:
        raise ValueError(
            f'{num_frames} frames of {height}x{width} at {speed:g} pixels a frame take '
            f'an image of at least {height}x{int(np.ceil(width + path))}, '
            f'got {image.shape[0]}x{image.shape[1]}'
        )
    left, middle = (image.shape[1] - width - path) / 2, (image.shape[0] - 1) / 2
    return [
        cv2.getRectSubPix(
            image, (width, height), (left + (width - 1) / 2 + speed * index, middle)
        )
        for index in range(num_frames)
    ]


def read_frames(args: argparse.Namespace) -> list[np.ndarray]:
    """Returns the frames, BGR, ``(H, W, 3)``.

    Raises:
        ValueError: If there are fewer than two frames, or not all of one size.
    """
    if args.source.is_file():
        return pan(mmcv.imread(args.source), args.num_frames, args.speed, args.size)
    paths = sorted(
        path
        for path in args.source.iterdir()
        if path.suffix.lower() in ('.jpg', '.jpeg', '.png')
    )
    frames = [mmcv.imread(path) for path in paths[: args.num_frames]]
    sizes = {frame.shape[:2] for frame in frames}
    if len(frames) < 2 or len(sizes) > 1:
        raise ValueError(
            f'{args.source} must hold at least two .jpg or .png frames of one size, '
            f'got {len(frames)} of sizes {sorted(sizes)}'
        )
    return frames


@torch.no_grad()
def solve_frames(
    backbone: nn.Module,
    layer: EquilibriumLayer,
    images: Sequence[Tensor],
    guess: InitialGuess,
) -> tuple[Tensor, Tensor]:
    """Returns evaluations and whether it converged for each frame but the first.

    Args:
        backbone (nn.Module): In evaluation mode.
        layer (EquilibriumLayer): Its equilibrium; keeps its own initial guess.
        images (Sequence[Tensor]): Normalised frames, ``(1, 3, H, W)``.
        guess (InitialGuess): Where the solves start.
    """
    solutions = []
    handle = layer.register_forward_hook(lambda *args: solutions.append(args[2][1]))
    configured, layer.initial_guess = layer.initial_guess, guess.eval()
    for image in images:
        backbone(image)
    layer.initial_guess = configured
    handle.remove()
    n_evals = torch.cat([solution.n_evals for solution in solutions])
    converged = torch.cat([solution.converged for solution in solutions])
    return n_evals[1:].cpu(), converged[1:].cpu()


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args)
    frames = read_frames(args)
    model = build_model(cfg)
    load_checkpoint(model, args.checkpoint, map_location='cpu')
    model.to(get_device())
    layers = [m for m in model.backbone.modules() if isinstance(m, EquilibriumLayer)]
    if len(layers) != 1:
        raise ValueError(
            f'{args.config} must have one equilibrium layer in its backbone, '
            f'got {len(layers)}'
        )
    (layer,) = layers
    tensors = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    images = [model.data_preprocessor(dict(inputs=[t]))['inputs'] for t in tensors]

    solver = layer.solver
    solver.max_evals = args.max_evals
    print(f'{args.source}, {len(frames)} frames of {frames[0].shape[0]}x', end='')
    print(f'{frames[0].shape[1]}, {type(solver).__name__}, {solver.stop_mode} residual')
    print(f'{"":10}{"median evaluations":>24}{"":12}{"reached":>16}')
    print(f'{"tol":>10}{"zero":>12}{"previous":>12}{"ratio":>12}', end='')
    print(f'{"zero":>8}{"previous":>10}')
    for solver.tol in args.tol:
        cold, cold_reached = solve_frames(model.backbone, layer, images, ZeroGuess())
        warm, warm_reached = solve_frames(
            model.backbone, layer, images, PreviousGuess()
        )
        both = cold_reached & warm_reached
        shares = (
            f'{cold_reached.float().mean():8.0%}{warm_reached.float().mean():10.0%}'
        )
        if not both.any():
            print(f'{solver.tol:10g}{"-":>12}{"-":>12}{"-":>12}{shares}')
            continue
        cold, warm = (
            n_evals[both].double().quantile(0.5).item() for n_evals in (cold, warm)
        )
        print(f'{solver.tol:10g}{cold:12g}{warm:12g}{warm / cold:12.2f}{shares}')


if __name__ == '__main__':
    main()
