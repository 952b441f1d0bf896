_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/digit_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

channels = [16, 32, 64]
head_channels = 64
model = dict(
    backbone=dict(
        _delete_=True,
        type='MDEQ',
        arch=dict(channels=channels, expansion=3),
        num_layers=4,
        forward_solver=dict(
            type='BroydenSolver', max_evals=20, tol=1e-3, returns='evaluation'
        ),
        gradient=dict(
            type='ImplicitGradient',
            solver=dict(
                type='BroydenSolver', max_evals=15, tol=1e-2, history_dtype='bfloat16'
            ),
        ),
    ),
    neck=dict(in_channels=channels, out_channels=head_channels, num_outs=3),
    bbox_head=dict(
        num_classes=10,
        in_channels=head_channels,
        feat_channels=head_channels,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=8),
        # Anchors of 16 to 100 pixels.
        anchor_generator=dict(octave_base_scale=2, strides=[8, 16, 32]),
    ),
)

iters = 3 * 250
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='Adam', lr=3e-3), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False),
]
train_cfg = dict(max_epochs=3, val_interval=3)
auto_scale_lr = dict(base_batch_size=4)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 650
default_hooks.checkpoint.interval = 1
default_hooks.update(logger=dict(interval=20))
randomness = dict(seed=0)
