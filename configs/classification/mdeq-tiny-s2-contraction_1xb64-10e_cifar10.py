# TINY behind a stem of stride 2, with a cell that is a contraction: ten epochs at the
# equilibrium, and none unrolled.
_base_ = './mdeq-tiny_1xb64-10e_cifar10.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=(24, 24),
            post_norm_affine=False,
            norm_type='MeanOnlyGroupNorm',
            residual_weight=0.5,
            fusion_weight=0.3,
            downsample_times=1,
        ),
    )
)

default_hooks = dict(
    equilibrium=dict(pretrain_iters=0),
    projection=dict(type='SpectralProjectionHook'),
)
