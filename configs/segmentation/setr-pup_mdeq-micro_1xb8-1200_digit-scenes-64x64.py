_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='SETRUPHead',
        in_channels=64,
        in_index=2,
        channels=32,
        num_convs=2,
        up_scale=2,
        kernel_size=3,
        **_base_.common,
    )
)
