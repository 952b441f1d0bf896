"""Small stock models of two tasks, with images to train them on."""

from __future__ import annotations

import mmpretrain.models  # noqa: F401  registers the models
import mmseg.models  # noqa: F401
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch.utils.data import Dataset

SOLVER = dict(type='BroydenSolver', max_evals=6, tol=1e-9)
MDEQ = dict(
    type='MDEQ',
    arch=dict(channels=(8, 16), num_groups=4, expansion=1),
    num_layers=2,
    dropout=0.2,
    forward_solver=SOLVER,
    gradient=dict(type='ImplicitGradient', solver=SOLVER),
)
RESNET = dict(
    type='mmpretrain.ResNet',
    depth=18,
    stem_channels=8,
    base_channels=8,
    out_indices=(0, 1),
)
BACKBONES = dict(MDEQ=MDEQ, ResNet=RESNET)


def model_config(backbone: dict = MDEQ, **settings: object) -> dict:
    """Returns the config of a model that tells classes and pixels apart."""
    normalize = dict(mean=[127.0] * 3, std=[60.0] * 3)
    pixels = dict(
        type='EncoderDecoder',
        _scope_='mmseg',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), **normalize),
        decode_head=dict(
            type='FCNHead',
            in_channels=8,
            in_index=0,
            channels=4,
            num_convs=1,
            num_classes=3,
        ),
        test_cfg=dict(mode='whole'),
    )
    classes = dict(
        type='ImageClassifier',
        _scope_='mmpretrain',
        data_preprocessor=normalize,
        neck=dict(type='GlobalAveragePooling'),
        # The classifier takes the last of some branches.
        head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
    )
    tasks = dict(classes=classes, pixels=pixels)
    return ConfigDict(
        dict(type='MultiTaskModel', backbone=backbone, tasks=tasks, **settings)
    )


@DATASETS.register_module(force=True)
class TaskImages(Dataset):
    """Images with a label each, or one per pixel.

    Args:
        task (str): ``'classes'`` or ``'pixels'``.
        augmented (bool): Whether they are darkened at random. Defaults to False.
    """

    def __init__(self, task: str, augmented: bool = False) -> None:
        self.task = task
        self.augmented = augmented
        self.metainfo = dict(classes=('a', 'b', 'c'), task=task)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        shape = (3, 32, 32)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        if self.augmented:
            image = image // torch.randint(1, 3, ())
        meta = dict(ori_shape=shape[1:], img_shape=shape[1:], index=index)
        if self.task == 'classes':
            sample = DataSample(metainfo=meta).set_gt_label(index % 3)
        else:
            label = torch.randint(0, 3, (1, *shape[1:]), generator=generator)
            sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label))
        return dict(inputs=image, data_samples=sample)


def batches(**sizes: int) -> dict[str, dict]:
    """Returns a batch of so many images for each task."""
    data = {}
    for task, size in sizes.items():
        samples = [TaskImages(task)[index] for index in range(size)]
        names = ('inputs', 'data_samples')
        data[task] = {name: [sample[name] for sample in samples] for name in names}
    return data
