_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

# The head of STDC that learns the edges, beside the FCNHead.
model = dict(
    auxiliary_head=dict(
        type='STDCHead',
        in_channels=16,
        in_index=0,
        channels=16,
        num_convs=1,
        num_classes=2,
        concat_input=False,
        boundary_threshold=0.1,
        norm_cfg=_base_.norm_cfg,
        align_corners=True,
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', use_sigmoid=True),
            dict(type='DiceLoss', loss_name='loss_dice'),
        ],
    )
)
