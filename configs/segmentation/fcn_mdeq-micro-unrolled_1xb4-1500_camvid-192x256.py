# The MDEQ beside it, unrolled twice from the first iteration to the last. Standardised
# weights learn faster, but solves with them do not converge.
_base_ = './fcn_mdeq-micro_1xb4-1500_camvid-192x256.py'

model = dict(backbone=dict(conv_cfg=dict(type='ConvWS'), num_layers=2))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
default_hooks = dict(equilibrium=dict(pretrain_iters=1_000_000))
