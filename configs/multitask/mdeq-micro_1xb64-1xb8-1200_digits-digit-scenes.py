_base_ = ['../_base_/mdeq_runtime.py', '../_base_/multi_task_runtime.py']

# ruff: noqa: E402
from mmengine import Config

# Each task as in its own config, but for the backbone: both have that of the scenes.
digits = Config.fromfile(
    '{{ fileDirname }}/../classification/mdeq-tiny_1xb64_digits.py'
)
scenes = Config.fromfile(
    '{{ fileDirname }}/../segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
)
backbone = scenes.model.pop('backbone')
digits.model.pop('backbone')
digits.model.data_preprocessor = digits.data_preprocessor
digits.model.neck[0].update(
    in_channels=backbone.arch.channels, head_channels=[8, 16, 32]
)
digits.train_dataloader.persistent_workers = True

model = dict(
    type='MultiTaskModel',
    backbone=backbone,
    tasks=dict(
        digits=dict(digits.model, _scope_='mmpretrain'),
        scenes=dict(scenes.model, _scope_='mmseg'),
    ),
)
train_dataloader = dict(digits=digits.train_dataloader, scenes=scenes.train_dataloader)
val_dataloader = dict(digits=digits.val_dataloader, scenes=scenes.val_dataloader)
val_evaluator = dict(digits=digits.val_evaluator, scenes=scenes.val_evaluator)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
del Config, digits, scenes, backbone

iters = 1200
train_cfg = dict(max_iters=iters, val_interval=iters)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False)
]
default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 900
default_hooks.checkpoint.update(by_epoch=False, interval=iters)
