# The stock HRNet-W18-small with 7 instead of 18 channels: as many parameters as the
# MDEQ beside it (785 against 792 thousand), for comparison.
_base_ = [
    'mmseg::_base_/models/fcn_hr18.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/adam_1500.py',
    'mmseg::_base_/default_runtime.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
channels = [7, 14, 28, 56]
model = dict(
    data_preprocessor=dict(size=(192, 256)),
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
        num_classes=11,
        norm_cfg=norm_cfg,
    ),
)
