"""The official CIFAR-10 recipe on the stock data set, cut short."""

import lzma
import shutil

import pytest

CONFIG = 'classification/mdeq-tiny_2xb64_cifar10.py'


@pytest.fixture(scope='module')
def cifar10(shared, tmp_path_factory):
    """A folder with the data under ``data/cifar10``, as torchvision unpacks it."""
    workplace = tmp_path_factory.mktemp('cifar10')
    batches = workplace / 'data/cifar10/cifar-10-batches-py'
    batches.mkdir(parents=True)
    for path in (shared / 'data/cifar10/cifar-10-batches-py').iterdir():
        if path.suffix == '.xz':
            with lzma.open(path) as source, (batches / path.stem).open('wb') as target:
                shutil.copyfileobj(source, target)
        else:
            shutil.copy(path, batches)
    return workplace


@pytest.mark.slow
def test_train_and_evaluate(run, root, cifar10, tmp_path, scalars):
    config = root / 'configs' / CONFIG
    work_dir = tmp_path / 'run'
    run(
        'train.py',
        config,
        *('--work-dir', work_dir, '--cfg-options'),
        'train_dataloader.batch_size=16',
        'train_dataloader.dataset.indices=160',
        'val_dataloader.dataset.indices=64',
        'train_cfg.max_epochs=2',
        'param_scheduler.T_max=2',
        'custom_hooks.0.pretrain_iters=10',
        'default_hooks.logger.interval=5',
        'randomness.seed=0',
        cwd=cifar10,
    )
    losses = [r for r in scalars(work_dir) if 'loss' in r]
    assert losses[-1]['loss'] < losses[0]['loss']
    assert 'forward_evals' not in losses[1]
    assert 'forward_evals' in losses[-1]
    output = run(
        'test.py',
        *(config, work_dir / 'epoch_2.pth', '--work-dir', tmp_path / 'test'),
        *('--cfg-options', 'test_dataloader.dataset.indices=64'),
        cwd=cifar10,
    )
    assert 'accuracy/top1' in output
