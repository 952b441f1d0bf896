_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='DepthwiseSeparableASPPHead',
        in_channels=64,
        in_index=2,
        channels=32,
        dilations=(1, 2, 3, 4),
        c1_in_channels=16,
        c1_channels=16,
        **_base_.common,
    )
)
