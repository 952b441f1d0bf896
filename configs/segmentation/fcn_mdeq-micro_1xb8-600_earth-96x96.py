_base_ = [
    '../_base_/models/fcn_mdeq-small.py',
    '../_base_/datasets/earth.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    '../_base_/mdeq_runtime.py',
]

norm_cfg = dict(type='BN', momentum=0.1, requires_grad=True)
channels = [16, 32, 64]
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(
        arch=dict(_delete_=True, channels=channels, expansion=3),
        num_layers=4,
        norm_cfg=norm_cfg,
        forward_solver=dict(max_evals=20, returns='evaluation'),
        gradient=dict(solver=dict(max_evals=15, tol=1e-2)),
    ),
    decode_head=dict(
        in_channels=channels,
        in_index=[0, 1, 2],
        channels=sum(channels),
        num_classes=8,
        norm_cfg=norm_cfg,
        loss_decode=dict(
            _delete_=True,
            type='ClassWeightedCrossEntropyLoss',
            class_weight=_base_.class_weight,
        ),
    ),
)

iters = 600
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=0.01))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False)
]
train_cfg = dict(max_iters=iters, val_interval=iters)
auto_scale_lr = dict(base_batch_size=8)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 450
default_hooks.checkpoint.interval = iters
default_hooks.update(logger=dict(interval=20))
randomness = dict(seed=0)
