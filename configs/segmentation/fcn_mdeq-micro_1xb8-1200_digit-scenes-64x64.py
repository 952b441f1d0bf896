_base_ = [
    '../_base_/models/fcn_mdeq-small.py',
    '../_base_/datasets/digit_scenes.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    '../_base_/mdeq_runtime.py',
]

norm_cfg = dict(type='BN', momentum=0.1, requires_grad=True)
channels = [16, 32, 64]
branches = dict(in_channels=channels, in_index=[0, 1, 2])
# What every head on these data has.
common = dict(
    num_classes=11,
    norm_cfg=norm_cfg,
    dropout_ratio=0,
    # Nine of ten pixels are background.
    loss_decode=dict(
        type='CrossEntropyLoss',
        use_sigmoid=False,
        loss_weight=1.0,
        class_weight=[0.2] + [1.0] * 10,
    ),
)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(_delete_=True, channels=channels, expansion=3, downsample_times=1),
        num_layers=5,
        norm_cfg=norm_cfg,
        forward_solver=dict(max_evals=20, returns='evaluation'),
        gradient=dict(solver=dict(max_evals=15, tol=1e-2)),
    ),
    decode_head=dict(channels=sum(channels), **branches, **common),
)

iters = 1200
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=0.01))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False)
]
train_cfg = dict(max_iters=iters, val_interval=300)
auto_scale_lr = dict(base_batch_size=8)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 900
default_hooks.checkpoint.interval = 300
default_hooks.update(logger=dict(interval=20))
randomness = dict(seed=0)
