_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

common = dict(_base_.common, norm_cfg=dict(type='LN'))
model = dict(
    decode_head=dict(
        _delete_=True,
        type='SegmenterMaskTransformerHead',
        in_channels=16,
        in_index=0,
        channels=32,
        num_layers=2,
        num_heads=2,
        embed_dims=32,
        **common,
    )
)
