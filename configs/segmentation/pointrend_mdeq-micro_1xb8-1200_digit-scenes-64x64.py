_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    type='CascadeEncoderDecoder',
    num_stages=2,
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=32, num_outs=3),
    decode_head=[
        dict(
            type='FPNHead',
            in_channels=[32, 32, 32],
            in_index=[0, 1, 2],
            feature_strides=[2, 4, 8],
            channels=32,
            **_base_.common,
        ),
        dict(
            type='PointHead',
            in_channels=[32],
            in_index=[0],
            channels=32,
            num_fcs=3,
            coarse_pred_each_layer=True,
            num_classes=11,
            dropout_ratio=0,
            loss_decode=_base_.common.loss_decode,
        ),
    ],
    train_cfg=dict(num_points=256, oversample_ratio=3, importance_sample_ratio=0.75),
    test_cfg=dict(subdivision_steps=1, subdivision_num_points=1024, scale_factor=2),
)
