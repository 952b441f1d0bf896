# The stock HRNet-W18-small with 4 instead of 18 channels: about as many parameters as
# the MDEQ beside it (394 against 353 thousand), for comparison.
_base_ = [
    'mmseg::_base_/models/fcn_hr18.py',
    '../_base_/datasets/earth.py',
    '../_base_/schedules/adam_1500.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mdeq_mm'], allow_failed_imports=False)

norm_cfg = dict(type='BN', requires_grad=True)
channels = [4, 8, 16, 32]
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    pretrained=None,
    backbone=dict(
        norm_cfg=norm_cfg,
        extra=dict(
            stage1=dict(num_blocks=(2,)),
            stage2=dict(num_blocks=(2, 2), num_channels=channels[:2]),
            stage3=dict(num_modules=3, num_blocks=(2, 2, 2), num_channels=channels[:3]),
            stage4=dict(num_modules=2, num_blocks=(2, 2, 2, 2), num_channels=channels),
        ),
    ),
    decode_head=dict(
        in_channels=channels,
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
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=iters, by_epoch=False)
]
train_cfg = dict(max_iters=iters, val_interval=iters)
default_hooks = dict(checkpoint=dict(interval=iters))
auto_scale_lr = dict(base_batch_size=8)
