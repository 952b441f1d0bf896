_base_ = ['../_base_/mdeq_runtime.py', '../_base_/multi_task_runtime.py']

# ruff: noqa: E402
from mmengine import Config

# Each task as in its own config, but for the backbone: both have that of CamVid.
cifar10 = Config.fromfile(
    '{{ fileDirname }}/../classification/mdeq-tiny_2xb64_cifar10.py'
)
camvid = Config.fromfile(
    '{{ fileDirname }}/../segmentation/fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'
)
backbone = camvid.model.pop('backbone')
cifar10.model.pop('backbone')
cifar10.model.data_preprocessor = cifar10.data_preprocessor
cifar10.model.neck[0].update(
    in_channels=backbone.arch.channels, head_channels=[8, 16, 32]
)

model = dict(
    type='MultiTaskModel',
    backbone=backbone,
    tasks=dict(
        cifar10=dict(cifar10.model, _scope_='mmpretrain'),
        camvid=dict(camvid.model, _scope_='mmseg'),
    ),
    # A higher weight makes CIFAR-10 better and CamVid worse. With 2 CIFAR-10 is less
    # than a point worse than trained alone, and CamVid is better.
    loss_weights=dict(cifar10=2.0),
)
train_dataloader = dict(
    cifar10=cifar10.train_dataloader, camvid=camvid.train_dataloader
)
val_dataloader = dict(cifar10=cifar10.val_dataloader, camvid=camvid.val_dataloader)
val_evaluator = dict(cifar10=cifar10.val_evaluator, camvid=camvid.val_evaluator)
test_dataloader = dict(cifar10=cifar10.test_dataloader, camvid=camvid.test_dataloader)
test_evaluator = dict(cifar10=cifar10.test_evaluator, camvid=camvid.test_evaluator)
del Config, cifar10, camvid, backbone

iters = 1500
train_cfg = dict(max_iters=iters, val_interval=iters)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False)
]
default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 1100
default_hooks.checkpoint.update(by_epoch=False, interval=iters // 5)
