_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='GCHead',
        input_transform='resize_concat',
        channels=32,
        ratio=1 / 4,
        pooling_type='att',
        fusion_types=('channel_add',),
        **_base_.branches,
        **_base_.common,
    )
)
