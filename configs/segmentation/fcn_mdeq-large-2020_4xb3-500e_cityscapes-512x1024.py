# The release of 2020: smaller budgets and a shorter shallow phase.
_base_ = ['./fcn_mdeq-large_4xb3-500e_cityscapes-512x1024.py']

model = dict(
    backbone=dict(
        forward_solver=dict(max_evals=26),
        gradient=dict(solver=dict(max_evals=26)),
    )
)

custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters=32000),
    dict(type='RandomStateHook'),
]
