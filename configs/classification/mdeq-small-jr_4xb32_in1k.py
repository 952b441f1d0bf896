# Jacobian regularisation, which lets 14 evaluations do.
_base_ = ['./mdeq-small_4xb32_in1k.py']

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, channels=(32, 64, 128, 256), post_norm_affine=False),
        dropout=0.02,
        forward_solver=dict(max_evals=14),
        gradient=dict(solver=dict(max_evals=14)),
    ),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(32, 64, 128, 256),
            head_channels=(28, 56, 112, 224),
            out_channels=2048,
        ),
        dict(type='GlobalAveragePooling'),
    ],
)

optim_wrapper = dict(optimizer=dict(lr=0.04, weight_decay=2e-5))

default_hooks = dict(
    jacobian=dict(
        type='JacobianRegularizationHook',
        weight=2.5,
        freq=0.08,
        incremental=50000,
        pretrain_weight=0.03,
        max_evals_delta=2,
    ),
)
