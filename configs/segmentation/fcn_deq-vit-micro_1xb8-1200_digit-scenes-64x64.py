_base_ = [
    '../_base_/models/fcn_mdeq-small.py',
    '../_base_/datasets/digit_scenes.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    '../_base_/mdeq_runtime.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True,
        type='DEQViT',
        arch=dict(embed_dims=64, num_heads=4, feedforward_channels=256),
        img_size=64,
        patch_size=4,
        forward_solver=dict(
            type='AndersonSolver', max_evals=16, tol=1e-3, returns='evaluation'
        ),
        gradient=dict(type='PhantomGradient', steps=5, damping=0.5),
        num_layers=6,
    ),
    decode_head=dict(
        in_channels=64,
        in_index=0,
        input_transform=None,
        channels=64,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Nine of ten pixels are background.
        loss_decode=dict(class_weight=[0.2] + [1.0] * 10),
    ),
)

iters = 1200
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(_delete_=True, max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False),
]
train_cfg = dict(max_iters=iters, val_interval=iters)
auto_scale_lr = dict(base_batch_size=8)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = iters // 2
default_hooks.checkpoint.interval = iters
default_hooks.update(logger=dict(interval=20))
randomness = dict(seed=0)
