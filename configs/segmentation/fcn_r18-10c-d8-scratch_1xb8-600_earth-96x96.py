# The stock ResNet-18 with 10 instead of 64 channels: about as many parameters as the
# MDEQ beside it (346 against 353 thousand), for comparison.
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    '../_base_/datasets/earth.py',
    '../_base_/schedules/adam_1500.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mdeq_mm'], allow_failed_imports=False)

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    pretrained=None,
    backbone=dict(depth=18, stem_channels=10, base_channels=10, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=80,
        channels=32,
        num_classes=8,
        norm_cfg=norm_cfg,
        loss_decode=dict(
            _delete_=True,
            type='ClassWeightedCrossEntropyLoss',
            class_weight=_base_.class_weight,
        ),
    ),
    auxiliary_head=dict(in_channels=40, channels=16, num_classes=8, norm_cfg=norm_cfg),
)

iters = 600
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False)
]
train_cfg = dict(max_iters=iters, val_interval=iters)
default_hooks = dict(checkpoint=dict(interval=iters))
auto_scale_lr = dict(base_batch_size=8)
