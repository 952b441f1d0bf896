# The release of 2020: a shorter unrolled phase.
_base_ = ['./mdeq-small_4xb32_in1k.py']

default_hooks = dict(equilibrium=dict(pretrain_iters=500000))
