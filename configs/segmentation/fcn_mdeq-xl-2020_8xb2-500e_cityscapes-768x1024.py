# The release of 2020: smaller budgets.
_base_ = ['./fcn_mdeq-xl_8xb2-500e_cityscapes-768x1024.py']

model = dict(
    backbone=dict(
        forward_solver=dict(max_evals=26),
        gradient=dict(solver=dict(max_evals=26)),
    )
)
