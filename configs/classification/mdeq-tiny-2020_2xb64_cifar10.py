# The release of 2020: larger budgets, and affine parameters after the fusion.
_base_ = ['./mdeq-tiny_2xb64_cifar10.py']

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, channels=(24, 24), downsample_times=0),
        forward_solver=dict(max_evals=22),
        gradient=dict(solver=dict(max_evals=24)),
    )
)
