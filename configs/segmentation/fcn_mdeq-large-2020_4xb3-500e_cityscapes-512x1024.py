# The release of 2020: smaller budgets and a shorter unrolled phase.
_base_ = ['./fcn_mdeq-large_4xb3-500e_cityscapes-512x1024.py']

model = dict(
    backbone=dict(
        forward_solver=dict(max_evals=26),
        gradient=dict(solver=dict(max_evals=26)),
    )
)

default_hooks = dict(equilibrium=dict(pretrain_iters=32000))
