_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='EMAHead',
        input_transform='resize_concat',
        channels=32,
        ema_channels=32,
        num_bases=16,
        num_stages=3,
        momentum=0.1,
        **_base_.branches,
        **_base_.common,
    )
)
