_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    neck=dict(
        type='JPU',
        in_channels=(16, 32, 64),
        mid_channels=16,
        dilations=(1, 2, 4),
        norm_cfg=_base_.norm_cfg,
    ),
    decode_head=dict(
        _delete_=True,
        type='PSPHead',
        in_channels=48,
        in_index=2,
        channels=32,
        pool_scales=(1, 2, 3, 6),
        **_base_.common,
    ),
)
