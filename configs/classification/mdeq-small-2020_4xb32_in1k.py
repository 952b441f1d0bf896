# The release of 2020: a shorter shallow phase.
_base_ = ['./mdeq-small_4xb32_in1k.py']

custom_hooks = [
    dict(type='ImplicitGradientHook', pretrain_iters=500000),
    dict(type='RandomStateHook'),
]
