_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='ASPPHead',
        input_transform='resize_concat',
        channels=32,
        dilations=(1, 3, 6, 9),
        **_base_.branches,
        **_base_.common,
    )
)
