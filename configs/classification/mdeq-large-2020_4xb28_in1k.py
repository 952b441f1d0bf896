# The release of 2020: as wide as XL.
_base_ = ['./mdeq-large_4xb28_in1k.py']

model = dict(
    backbone=dict(
        arch='xl',
        forward_solver=dict(max_evals=24),
        gradient=dict(solver=dict(max_evals=24)),
    ),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(88, 176, 352, 704),
            head_channels=(32, 64, 128, 256),
            out_channels=2048,
        ),
        dict(type='GlobalAveragePooling'),
    ],
)

default_hooks = dict(equilibrium=dict(pretrain_iters=550000))
