# The MDEQ beside it with a cell that is a contraction, at the equilibrium from the
# first iteration on.
_base_ = './fcn_mdeq-micro_1xb8-600_earth-96x96.py'

model = dict(
    backbone=dict(
        arch=dict(norm_type='MeanOnlyGroupNorm', residual_weight=0.5, fusion_weight=0.3)
    )
)
default_hooks = dict(
    equilibrium=dict(pretrain_iters=0),
    projection=dict(type='SpectralProjectionHook'),
)
