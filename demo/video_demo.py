"""Segments a video with equilibria that start from those of the frame before.

It writes the video with the segmentation laid over it and, beside it, a plot of the
evaluations per frame with the cuts marked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Optional

from mdeq_mm.apis import load_config, single_layer
from mdeq_mm.cli import (
    add_cfg_options,
    add_checkpoint,
    int_of_at_least,
    positive_float,
)
from mdeq_mm.inference import (
    FrameRecord,
    Predictor,
    Start,
    check_codec,
    open_frames,
    whole_file,
    write_overlay_video,
)
from mdeq_mm.visualization import plot_evaluations


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='a video, or a folder of frames')
    add_checkpoint(parser)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('overlay.mp4'),
        help='video to write; the plot has the same name with .png; '
        'default: %(default)s',
    )
    parser.add_argument(
        '--num-frames',
        type=int_of_at_least(1),
        help='number of frames at most; default: all',
    )
    parser.add_argument(
        '--cut',
        type=positive_float,
        default=0.5,
        help='relative residual of the first evaluation above which a frame starts '
        'from zero; from zero it is 1; default: %(default)s',
    )
    parser.add_argument(
        '--compare',
        action='store_true',
        help='solve each frame from zero as well, and plot what that takes',
    )
    parser.add_argument(
        '--fps',
        type=positive_float,
        help='frames per second; default: those of the video, 25 for a folder',
    )
    parser.add_argument(
        '--codec',
        help='four characters; default: mp4v, and MJPG for .avi',
    )
    parser.add_argument('--device', help='default: the accelerator, else the CPU')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.out.resolve() == args.source.resolve():
        parser.error(f'--out must be another file than the video, got {args.out}')
    return args


def print_records(records: Sequence[FrameRecord]) -> None:
    """Prints what the frames took."""
    evals = [record.n_evals for record in records]
    print(f'{sum(evals)} evaluations, {median(evals):g} per frame (median)')
    zero = [r.n_evals_from_zero for r in records if r.n_evals_from_zero is not None]
    if zero:
        saved = 1 - sum(evals) / sum(zero)
        print(f'{sum(zero)} from zero, {median(zero):g} per frame; {saved:.0%} saved')
    converged = sum(record.converged for record in records)
    worst = max(record.residual for record in records)
    print(f'{converged} of {len(records)} frames reach the tolerance, ', end='')
    print(f'the largest residual is {worst:.2g}')
    for start, count in Counter(record.start for record in records).items():
        print(f'{count} started from {start.value}')
    cuts = [n for n, record in enumerate(records) if record.start is Start.CUT]
    if cuts:
        print(f'cuts at {", ".join(map(str, cuts))}')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Segments the video."""
    args = parse_args(argv)
    check_codec(args.out, args.codec)
    frames = open_frames(args.source, args.num_frames)
    cfg = load_config(args.config, args.cfg_options)
    predictor = Predictor(cfg, args.checkpoint, args.device, args.allow_partial)
    records = write_overlay_video(
        predictor, frames, args.out, args.fps, args.codec, args.cut, args.compare
    )
    print_records(records)
    lines = {'from the frame before': [record.n_evals for record in records]}
    if args.compare:
        lines['from zero'] = [record.n_evals_from_zero for record in records]
    anew = (Start.CUT, Start.SIZE)
    plot = args.out.with_suffix('.png')
    with whole_file(plot) as part:
        plot_evaluations(
            lines,
            part,
            cuts=[n for n, record in enumerate(records) if record.start in anew],
            max_evals=single_layer(predictor.model).mode.solver.max_evals,
            title=f'{args.source.name}, {Path(args.config).stem}',
        )
    print(f'{args.out} written')
    print(f'{plot} written')


if __name__ == '__main__':
    main()
