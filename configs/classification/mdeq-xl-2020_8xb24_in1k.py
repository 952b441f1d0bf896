# The release of 2020: a shorter shallow phase, one evaluation more.
_base_ = ['./mdeq-xl_8xb24_in1k.py']

model = dict(backbone=dict(forward_solver=dict(max_evals=27)))

custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters=400000),
    dict(type='RandomStateHook'),
]
