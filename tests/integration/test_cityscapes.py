"""From ImageNet weights to Cityscapes, on generated images of the true size."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ..isolation import NO_WORKERS

pytestmark = pytest.mark.slow
CLASSIFIER = 'classification/mdeq-small_4xb32_in1k.py'
SEGMENTOR = 'segmentation/fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py'

# ImageNet in miniature: one epoch of two iterations.
CLASSIFIER_SETTINGS = """
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet',
        data_prefix='train',
        pipeline=pipeline,
    ),
)
train_cfg = dict(max_epochs=1)
val_cfg, val_dataloader, val_evaluator = None, None, None
"""

# Runs a tool and says how much memory it took at most.
MEASURED = """
import re, runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name='__main__')
status = Path('/proc/self/status').read_text()
print('peak', int(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1]) // 1024, 'MiB')
"""


def scene(generator, height=1024, width=2048):
    """Coloured boxes, and their classes; a border is ignored."""
    label = np.zeros((height, width), dtype=np.uint8)
    for index in range(1, 19):
        top, left = generator.integers(0, (height - 200, width - 200))
        label[top : top + 200, left : left + 200] = index
    label[-30:] = 255
    colours = generator.integers(0, 256, (256, 3), dtype=np.uint8)
    return colours[label], label


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with ``data/cityscapes`` and a few classes as ``data/imagenet``."""
    workplace = tmp_path_factory.mktemp('cityscapes')
    generator = np.random.default_rng(0)
    for split, city, count in (('train', 'aachen', 2), ('val', 'lindau', 1)):
        folders = [
            workplace / 'data/cityscapes' / kind / split / city
            for kind in ('leftImg8bit', 'gtFine')
        ]
        for index in range(count):
            stem = f'{city}_{index:06}_000019'
            names = f'{stem}_leftImg8bit.png', f'{stem}_gtFine_labelTrainIds.png'
            for folder, name, array in zip(folders, names, scene(generator)):
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / name), array)
    for index in range(4):
        folder = workplace / 'data/imagenet/train' / f'class{index % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        image, _ = scene(generator, 256, 256)
        cv2.imwrite(str(folder / f'{index}.png'), image)
    return workplace


def test_fine_tune_and_evaluate(
    run_tool, root, environment, config, data, tmp_path, state_of
):
    path = config(CLASSIFIER, CLASSIFIER_SETTINGS)
    run_tool('train.py', path, '--work-dir', tmp_path / 'imagenet', cwd=data)
    weights = tmp_path / 'imagenet/epoch_1.pth'

    work_dir = tmp_path / 'cityscapes'
    run_tool(
        'train.py',
        *(root / 'configs' / SEGMENTOR, '--work-dir', work_dir, *NO_WORKERS),
        f'model.backbone.init_cfg.checkpoint={weights}',
        'train_dataloader.batch_size=1',
        'train_cfg.max_iters=2',
        # One iteration unrolled, one at the equilibrium.
        'default_hooks.equilibrium.pretrain_iters=1',
        'model.backbone.num_layers=2',
        'model.backbone.forward_solver.max_evals=4',
        'model.backbone.gradient.solver.max_evals=3',
        'default_hooks.logger.interval=1',
        cwd=data,
    )
    (log,) = (path.read_text() for path in work_dir.glob('*/*.log'))
    assert 'do not match exactly' not in log
    origins = dict(
        re.findall(r'^(\S+) - torch\.Size\(.*\): *\n(.*)$', log, re.MULTILINE)
    )
    checkpoint = work_dir / 'iter_2.pth'
    state = state_of(checkpoint)
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    assert set(origins) == {key for key in state if not key.endswith(buffers)}
    loaded = {
        name
        for name, origin in origins.items()
        if origin.strip() == f'PretrainedInit: load from {weights}'
    }
    assert loaded == {name for name in origins if name.startswith('backbone.')}
    assert 'forward_residual' in log

    # The whole image, with more evaluations than Broyden's method keeps. In a process
    # of its own, for the memory is that of a process.
    result = subprocess.run(
        [
            *(sys.executable, '-c', MEASURED, root / 'tools/test.py'),
            *(root / 'configs' / SEGMENTOR, checkpoint),
            *('--work-dir', tmp_path / 'test', '--cfg-options'),
            'test_dataloader.num_workers=0',
            'test_dataloader.persistent_workers=False',
            'model.backbone.forward_solver.max_evals=12',
        ],
        cwd=data,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert re.search(r'mIoU: \d', result.stdout)
    peak = int(re.search(r'(?m)^peak (\d+) MiB$', result.stdout)[1])
    print(f'peak memory of evaluating an image of 1024x2048: {peak} MiB')
    # A state is 30 MiB and Broyden keeps 20; with unlimited memory it would be 50.
    assert peak < 3072
