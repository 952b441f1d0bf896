_base_ = [
    '../_base_/datasets/digits.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

# ruff: noqa: E402
from mmengine import Config

# The backbone as it was trained, all of it frozen.
training = 'simsiam_mdeq-nano_1xb32-coslr-300_digits'
backbone = Config.fromfile('{{ fileDirname }}/' + f'{training}.py').model.backbone
backbone.frozen_stages = 1
backbone.init_cfg = dict(
    type='Pretrained',
    checkpoint=f'work_dirs/{training}/iter_300.pth',
    prefix='backbone.',
)
model = dict(
    type='ImageClassifier',
    backbone=backbone,
    neck=[
        dict(type='GlobalAveragePooling'),
        dict(type='ClsBatchNormNeck', input_features=32),
    ],
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=32,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
del Config, backbone

epochs = 8
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=2e-2))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True
)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=epochs)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)

default_hooks = _base_.mdeq_hooks
default_hooks.checkpoint.interval = epochs
default_hooks.update(logger=dict(interval=21))
randomness = dict(seed=0)
