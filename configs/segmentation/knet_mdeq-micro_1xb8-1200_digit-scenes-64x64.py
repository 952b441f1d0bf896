_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

stage = dict(
    type='KernelUpdateHead',
    num_classes=11,
    num_heads=4,
    num_mask_fcs=1,
    feedforward_channels=64,
    in_channels=32,
    out_channels=32,
    feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),
    kernel_updator_cfg=dict(
        type='KernelUpdator',
        in_channels=32,
        feat_channels=32,
        out_channels=32,
        act_cfg=dict(type='ReLU', inplace=True),
        norm_cfg=dict(type='LN'),
    ),
)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='IterativeDecodeHead',
        num_stages=2,
        kernel_update_head=[stage, stage],
        kernel_generate_head=dict(
            type='UPerHead',
            channels=32,
            pool_scales=(1, 2, 3, 6),
            **_base_.branches,
            **_base_.common,
        ),
    )
)
