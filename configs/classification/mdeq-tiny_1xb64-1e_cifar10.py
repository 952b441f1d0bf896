# The first look: one epoch of the config beside it, of which seven tenths are unrolled.
_base_ = './mdeq-tiny_1xb64-10e_cifar10.py'

epochs = 1
train_cfg = dict(max_epochs=epochs)
param_scheduler = dict(T_max=epochs)

default_hooks = dict(equilibrium=dict(pretrain_iters=547))
