_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='DepthwiseSeparableFCNHead',
        input_transform='resize_concat',
        channels=32,
        num_convs=2,
        concat_input=False,
        **_base_.branches,
        **_base_.common,
    )
)
