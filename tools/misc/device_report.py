"""Does it work on this device, and how fast? Writes one Markdown report.

Runs the tests of accelerators, the benchmarks in float32 and bfloat16, and one epoch of
TINY, on CIFAR-10 where it is found, else on generated digits. Each part is a process of
its own. One that fails, or runs out of its share of the time, does not stop the others.
The report is there from the first part on. Paste it into an issue.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import lzma
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Optional

import torch

from mdeq_mm.benchmark.report import GRACE_PERIOD, ReportPart, run_part
from mdeq_mm.cli import add_shape, int_of_at_least, positive_float

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs/classification'
CIFAR10 = Path('data/cifar10/cifar-10-batches-py')
PACKAGES = (
    *('mdeq-mm', 'torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmcv-lite'),
    *('mmsegmentation', 'mmpretrain'),
)
positive = int_of_at_least(1)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--device',
        choices=['cuda', 'cpu'],
        default='cuda',
        help='where to compute; cpu only shows that the report works; '
        'default: %(default)s',
    )
    parser.add_argument(
        '--out', default='device_report.md', help='file to write; default: %(default)s'
    )
    parser.add_argument(
        '--minutes',
        type=positive_float,
        default=9.0,
        help='time for all parts; default: %(default)s',
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=['tests', 'solvers', 'models', 'training'],
        default=['tests', 'solvers', 'models', 'training'],
        help='what to run; default: everything',
    )
    parser.add_argument(
        '--config',
        default=str(CONFIGS / 'mdeq-small_4xb32_in1k.py'),
        help='config file of the benchmarks; default: %(default)s',
    )
    add_shape(parser)
    parser.add_argument(
        '--batch-size',
        type=positive,
        default=16,
        help='images of a benchmark; default: %(default)s',
    )
    parser.add_argument(
        '--repeats',
        type=positive,
        default=5,
        help='rounds of a benchmark; default: %(default)s',
    )
    parser.add_argument('--pytest-args', default='', help='more arguments for pytest')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='settings to override in benchmarks and training, as key=value',
    )
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(
            f'torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no '
            'GPU: compare the driver that nvidia-smi shows with that version'
        )
    if not Path(args.config).is_file():
        parser.error(f'--config must be a file, got {args.config}')
    return args


def make_parts(args: argparse.Namespace) -> list[ReportPart]:
    """Returns what to run, in order."""
    python = sys.executable
    parts = []
    if 'tests' in args.parts:
        command = [python, '-m', 'pytest', '-v', '-n0', '-m', 'cuda', '--tb=short']
        command += [f'--rootdir={ROOT}', f'--device={args.device}', '-rfE']
        # No cache in the checkout, and what takes long is no failure here.
        command += ['-p', 'no:cacheprovider', '-p', 'no:time_limit', '-W', 'ignore']
        command += [*shlex.split(args.pytest_args), str(ROOT / 'tests/accelerator')]
        command.append(str(ROOT / 'tests/integration/test_cuda.py'))
        parts.append(ReportPart('Tests', 0.4, command))
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    for kind in ('solvers', 'models'):
        if kind not in args.parts:
            continue
        command = [python, str(ROOT / 'tools/analysis_tools/benchmark.py'), kind]
        command += [str(Path(args.config).resolve())]
        command += ['--batch-size', str(args.batch_size)]
        command += ['--repeats', str(args.repeats)]
        if args.shape is not None:
            command += ['--shape', *map(str, args.shape)]
        if kind == 'models':
            command += ['--backbones', 'resnet50']
        parts.append(ReportPart(f'{kind.title()}, float32', 0.1, [*command, *options]))
        command.append('--amp')
        parts.append(ReportPart(f'{kind.title()}, bfloat16', 0.1, [*command, *options]))
    if 'training' in args.parts:
        parts.append(training_part(args))
    return parts


def training_part(args: argparse.Namespace) -> ReportPart:
    """Returns the epoch of TINY, unrolled at first."""
    places = (Path.cwd(), ROOT, ROOT.parent / 'shared')
    found = [place / CIFAR10 for place in places if (place / CIFAR10).is_dir()]
    prepare: Callable[[Path], object]
    if found:
        data, config, unrolled = 'CIFAR-10', 'mdeq-tiny_2xb64_cifar10.py', 100
        batch_size = ['train_dataloader.batch_size=128']
        prepare = partial(link_cifar10, found[0])
    else:
        data, config, unrolled = 'generated digits', 'mdeq-tiny_1xb64_digits.py', 7
        batch_size, prepare = [], write_digits
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(CONFIGS / config)]
    command += ['--work-dir', 'training', '--cfg-options', *batch_size]
    command += [
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'param_scheduler.T_max=1',
        'default_hooks.logger.interval=20',
        f'default_hooks.equilibrium.pretrain_iters={unrolled}',
        *args.cfg_options,
    ]
    title = f'One epoch of TINY on {data}'
    return ReportPart(title, 0.2, command, prepare, read_training)


def link_cifar10(source: Path, folder: Path) -> None:
    """Puts the files of CIFAR-10 where the configs look, unpacked."""
    target = folder / CIFAR10
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == '.xz':
            with lzma.open(path) as file, (target / path.stem).open('wb') as copy:
                shutil.copyfileobj(file, copy)
        else:
            (target / path.name).symlink_to(path.resolve())


def write_digits(folder: Path) -> None:
    """Generates the digits where the configs look."""
    tool = ROOT / 'tools/dataset_converters/digits.py'
    command = [sys.executable, str(tool)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def read_training(folder: Path) -> list[str]:
    """Returns the last lines of the log of the training, validation included."""
    logs = sorted(folder.glob('training/*/vis_data/scalars.json'))
    if not logs:
        return []
    rows = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    return [
        ', '.join(
            f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}'
            for k, v in row.items()
        )
        for row in rows[-4:]
    ]


def describe(device: str) -> list[str]:
    """Returns the rows of a table of hardware and versions."""
    rows = {'date': time.strftime('%Y-%m-%d'), 'system': platform.platform()}
    rows['python'] = platform.python_version()
    if device == 'cuda':
        try:
            gpu = torch.cuda.get_device_properties(0)
        except RuntimeError as error:
            rows['device'] = f'not usable: {error}'.partition('\n')[0]
        else:
            memory = f'{gpu.total_memory / 2**30:.0f} GiB'
            rows['device'] = f'{torch.cuda.device_count()} x {gpu.name}, {memory}'
            rows['compute capability'] = f'{gpu.major}.{gpu.minor}'
        rows['driver'] = first_line(
            *('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
        )
        rows['CUDA of torch'] = str(torch.version.cuda or torch.version.hip)
        rows['cuDNN'] = str(torch.backends.cudnn.version())
    else:
        rows['device'] = f'CPU, {os.cpu_count()} cores'
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            rows[name] = importlib.metadata.version(name)
    rows['commit'] = first_line(
        'git', '-C', str(ROOT), 'describe', '--always', '--dirty'
    )
    return ['| | |', '|---|---|', *(f'| {k} | {v} |' for k, v in rows.items())]


def first_line(*command: str) -> str:
    """Returns the first line that a command prints, 'unknown' where it does not."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return result.stdout.partition('\n')[0] or 'unknown'


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the parts and writes the report.

    Raises:
        SystemExit: With code 1 if a part has not ended well.
    """
    args = parse_args(argv)
    out = Path(args.out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    text = ['# mdeq_mm on this device', '', *describe(args.device), '']
    statuses = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = make_parts(args)
        for number, part in enumerate(parts):
            out.write_text('\n'.join([*text, f'{part.title}: not ended']) + '\n')
            print(f'{part.title} ...', flush=True)
            share = part.share / sum(later.share for later in parts[number:])
            # What ending it takes is in its share.
            limit = share * (deadline - time.monotonic()) - 2 * GRACE_PERIOD
            status, lines = run_part(part, folder, ROOT, args.device, limit)
            print(f'{part.title}: {status}', flush=True)
            statuses.append(status)
            # No output ends this fence early.
            fence = '~' * 12
            text += [f'## {part.title}: {status}', '', fence, *lines, fence, '']
            out.write_text('\n'.join(text))
    print(f'wrote {out}')
    if not all(status.startswith('ok') for status in statuses):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
