# TINY behind a stem of stride 2, unrolled twice from the first iteration to the last.
# Standardised weights learn faster, but solves with them do not converge.
_base_ = './mdeq-tiny_1xb64-10e_cifar10.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=(24, 24),
            post_norm_affine=False,
            downsample_times=1,
        ),
        conv_cfg=dict(type='ConvWS'),
        num_layers=2,
    )
)

default_hooks = dict(equilibrium=dict(pretrain_iters=1_000_000))
