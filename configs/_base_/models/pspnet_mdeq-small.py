# MDEQ SMALL with the heads of PSPNet. Three branches are joined at stride 8, the one of
# the stock ResNet-D8; the heads are as wide as those of the stock ResNet-18.
_base_ = ['./fcn_mdeq-small.py']

common = dict(num_classes=19, norm_cfg=_base_.norm_cfg, align_corners=False)
model = dict(
    backbone=dict(
        # Set it to None to train from scratch.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/mdeq-small_4xb32_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        _delete_=True,
        type='PSPHead',
        in_channels=[64, 128, 256],
        in_index=[1, 2, 3],
        input_transform='resize_concat',
        channels=128,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        **common,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=128,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        **common,
    ),
)
