# TINY behind a stem of stride 2, unrolled twice from the first iteration to the last.
# Standardised weights learn faster, but solves with them do not converge.
_base_ = './mdeq-tiny-s2_1xb64-5e_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='ConvWS'), num_layers=2))

epochs = 10
train_cfg = dict(max_epochs=epochs)
param_scheduler = dict(T_max=epochs)
default_hooks = dict(equilibrium=dict(pretrain_iters=1_000_000))
