_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

# This head cannot do without dropout.
common = dict(_base_.common, dropout_ratio=0.1)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='ANNHead',
        in_channels=[32, 64],
        in_index=[1, 2],
        channels=32,
        project_channels=16,
        query_scales=(1,),
        key_pool_scales=(1, 3, 6, 8),
        **common,
    )
)
