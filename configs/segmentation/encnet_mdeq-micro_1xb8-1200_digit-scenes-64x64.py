_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='EncHead',
        channels=32,
        num_codes=16,
        use_se_loss=True,
        loss_se_decode=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.2),
        **_base_.branches,
        **_base_.common,
    )
)
