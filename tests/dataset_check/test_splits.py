"""The check of data sets, by its functions; tests/tools/misc has the rest."""

import cv2
import numpy as np
import pytest

from mdeq_mm.apis import load_config
from mdeq_mm.dataset_check import (
    Finding,
    Split,
    check_splits,
    find_duplicates,
    find_missing_classes,
    select_splits,
)

CONFIG = """
default_scope = 'mmpretrain'
model = dict(head=dict(num_classes=2))
dataset = dict(
    type='CustomDataset',
    data_root={root!r},
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
"""


@pytest.fixture
def cfg(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    for index, label in enumerate(('cat', 'dog', 'dog')):
        (tmp_path / 'data' / label).mkdir(parents=True, exist_ok=True)
        path = tmp_path / 'data' / label / f'{index}.png'
        cv2.imwrite(str(path), image + index)
    (tmp_path / 'config.py').write_text(CONFIG.format(root=str(tmp_path / 'data')))
    return load_config(tmp_path / 'config.py')


class TestCheckSplits:
    def test_counts(self, cfg):
        tracked = []

        def track(samples, name, number):
            tracked.append((name, number))
            return samples

        train, val = check_splits(cfg, track=track)
        assert tracked == [('train', 3)]
        assert train.classes == ('cat', 'dog')
        assert train.counts.tolist() == train.samples.tolist() == [1, 2]
        assert len(train.images) == 3
        assert train.findings == []
        assert (val.name, val.same_as) == ('val', 'train')

    def test_findings(self, cfg, tmp_path):
        (tmp_path / 'data/dog/1.png').write_bytes(b'')
        train, _ = check_splits(cfg)
        (finding,) = train.findings
        assert finding.severity == 'error'
        assert finding.where.startswith('train 1 (')
        assert str(finding).startswith('error: train 1 (')
        assert train.counts.tolist() == [1, 1]


class TestSelectSplits:
    def test_order(self, cfg):
        assert select_splits(cfg) == select_splits(cfg, ['val', 'train'])

    def test_missing(self, cfg):
        with pytest.raises(ValueError, match='train, val, got test$'):
            select_splits(cfg, ['test'])

    def test_of_several_tasks(self, cfg):
        cfg.val_dataloader = dict(cats=cfg.val_dataloader, dogs=cfg.val_dataloader)
        with pytest.raises(ValueError, match='one task, val_dataloader is of cats, d'):
            select_splits(cfg)


def test_duplicates():
    train = Split('train', images={bytes([i]): f'train {i}' for i in range(20)})
    val = Split('val', images={bytes([i]): f'val {i}' for i in range(5, 25)})
    found = find_duplicates([train, val])
    assert found[0] == Finding('warning', 'val 5', 'the same image as train 5')
    assert found[10:] == [Finding('warning', 'val', '5 more images that are in train')]
    assert find_duplicates([val]) == []


def test_missing_classes():
    split = Split('val', classes=('a', 'b', 'c'), counts=np.array([0, 3, 0]))
    (finding,) = find_missing_classes([split, Split('test', classes=('a',))])
    assert str(finding) == 'warning: val: classes that never occur: a, c'
