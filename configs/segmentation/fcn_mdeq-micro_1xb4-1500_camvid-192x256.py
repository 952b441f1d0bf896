_base_ = [
    '../_base_/models/fcn_mdeq-small.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/adam_1500.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

norm_cfg = dict(type='BN', momentum=0.1, requires_grad=True)
channels = [24, 48, 96]
model = dict(
    data_preprocessor=dict(size=(192, 256)),
    backbone=dict(
        arch=dict(_delete_=True, channels=channels, expansion=3),
        num_layers=4,
        norm_cfg=norm_cfg,
        forward_solver=dict(max_evals=14, returns='evaluation'),
        gradient=dict(solver=dict(max_evals=10, tol=1e-2)),
    ),
    decode_head=dict(
        in_channels=channels,
        in_index=[0, 1, 2],
        channels=sum(channels),
        num_classes=11,
        norm_cfg=norm_cfg,
    ),
)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 1100
