_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='ISAHead',
        input_transform='resize_concat',
        channels=32,
        isa_channels=16,
        down_factor=(8, 8),
        **_base_.branches,
        **_base_.common,
    )
)
