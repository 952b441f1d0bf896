_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='NLHead',
        input_transform='resize_concat',
        channels=32,
        reduction=2,
        use_scale=True,
        mode='embedded_gaussian',
        **_base_.branches,
        **_base_.common,
    )
)
