"""From the packages to the picture of an unseen continent, as in `make demo`."""

from pathlib import Path

import cv2
import pytest

from ..isolation import NO_WORKERS

pytestmark = pytest.mark.slow
(CONFIG,) = (Path(__file__).resolve().parents[2] / 'configs').glob(
    'segmentation/fcn_mdeq-micro_*_earth-96x96.py'
)


def test_tiles(earth):
    counts = {
        split: len(list((earth / 'data/earth/img_dir' / split).iterdir()))
        for split in ('train', 'val', 'test')
    }
    assert counts == dict(train=102, val=27, test=1)


def test_train_evaluate_and_picture(run_tool, earth, tmp_path, scalars):
    work_dir = tmp_path / 'run'
    run_tool(
        *('train.py', CONFIG, '--work-dir', work_dir, *NO_WORKERS),
        *('train_cfg.max_iters=20', 'train_cfg.val_interval=20'),
        'val_dataloader.dataset.indices=4',
        'default_hooks.equilibrium.pretrain_iters=15',
        'default_hooks.logger.interval=5',
        cwd=earth,
    )
    records = scalars(work_dir)
    losses = [record['loss'] for record in records if 'loss' in record]
    assert losses[-1] < losses[0]
    assert 'mIoU' in records[-1]
    # A part of the continent, and more evaluations than the network has seen.
    out = tmp_path / 'continent.png'
    run_tool(
        *('analysis_tools/plot_segmentation.py', CONFIG, work_dir / 'iter_20.pth'),
        *('--out', out, '--residual', '--side-by-side', *NO_WORKERS),
        cwd=earth,
    )
    picture = cv2.imread(str(out))
    assert picture.shape[1] > picture.shape[0]
