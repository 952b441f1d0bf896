_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=32, num_outs=3),
    decode_head=dict(
        _delete_=True,
        type='FPNHead',
        in_channels=[32, 32, 32],
        in_index=[0, 1, 2],
        feature_strides=[2, 4, 8],
        channels=32,
        **_base_.common,
    ),
)
