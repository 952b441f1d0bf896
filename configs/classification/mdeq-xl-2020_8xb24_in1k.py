# The release of 2020: a shorter unrolled phase, one evaluation more.
_base_ = ['./mdeq-xl_8xb24_in1k.py']

model = dict(backbone=dict(forward_solver=dict(max_evals=27)))

default_hooks = dict(equilibrium=dict(pretrain_iters=400000))
