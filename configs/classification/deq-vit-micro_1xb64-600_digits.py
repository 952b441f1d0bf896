_base_ = [
    '../_base_/models/deq-vit-micro.py',
    '../_base_/schedules/adamw_500.py',
    '../_base_/datasets/digits.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

# Images of 8x8 pixels: 16 tokens.
model = dict(backbone=dict(img_size=8, patch_size=2))

iters = 600
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False),
]
train_cfg = dict(max_iters=iters, val_interval=iters)
auto_scale_lr = dict(base_batch_size=64)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = iters // 2
default_hooks.checkpoint.update(by_epoch=False, interval=iters)
default_hooks.update(logger=dict(interval=20, log_metric_by_epoch=False))
randomness = dict(seed=0)
