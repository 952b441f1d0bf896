_base_ = [
    '../_base_/models/mdeq-small_in1k.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

# 100 epochs of ceil(1281167 / (4 * 32)) = 10,010 iterations are 1,001,000.
epochs = 100
optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=5e-5, nesterov=True))
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    eta_min=1e-6,
    T_max=epochs,
    by_epoch=True,
    convert_to_iter_based=True,
)
auto_scale_lr = dict(base_batch_size=4 * 32)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 510000
