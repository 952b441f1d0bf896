_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

model = dict(
    decode_head=dict(
        _delete_=True,
        type='LightHamHead',
        channels=32,
        ham_channels=32,
        ham_kwargs=dict(MD_R=16, rand_init=False),
        **_base_.branches,
        **_base_.common,
    )
)
