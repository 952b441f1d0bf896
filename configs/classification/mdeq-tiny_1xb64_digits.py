_base_ = [
    '../_base_/models/mdeq-tiny_cifar.py',
    '../_base_/datasets/digits.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

model = dict(backbone=dict(forward_solver=dict(returns='evaluation')))

epochs = 12
iters_per_epoch = 21  # 1,343 training images in batches of 64
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='Adam', lr=2e-3, weight_decay=2.5e-6)
)
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    eta_min=1e-6,
    T_max=epochs,
    by_epoch=True,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=epochs, val_interval=4)
auto_scale_lr = dict(base_batch_size=64)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 8 * iters_per_epoch
default_hooks.checkpoint.interval = 4
default_hooks.update(logger=dict(interval=7))
randomness = dict(seed=0)
