# MDEQ SMALL with the head of SegFormer, as wide as the stock one.
_base_ = ['./fcn_mdeq-small.py']

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
        type='SegformerHead',
        in_channels=[32, 64, 128, 256],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
