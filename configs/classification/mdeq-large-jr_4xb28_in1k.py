# Jacobian regularisation, which lets 14 evaluations do.
_base_ = ['./mdeq-large_4xb28_in1k.py']

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, channels=(80, 160, 320, 640), post_norm_affine=False),
        forward_solver=dict(max_evals=14),
        gradient=dict(solver=dict(max_evals=14)),
    )
)

default_hooks = dict(
    jacobian=dict(
        type='JacobianRegularizationHook',
        weight=3.0,
        freq=0.08,
        incremental=50000,
        pretrain_weight=0.03,
        max_evals_delta=2,
    ),
)
