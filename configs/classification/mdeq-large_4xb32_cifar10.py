_base_ = [
    '../_base_/models/mdeq-large_cifar.py',
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

train_dataloader = dict(batch_size=32)
val_dataloader = dict(batch_size=32)
test_dataloader = dict(batch_size=32)

# 220 epochs of ceil(50000 / (4 * 32)) = 391 iterations are 86,020.
epochs = 220
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=1e-3))
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    eta_min=1e-6,
    T_max=epochs,
    by_epoch=True,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=4 * 32)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 20000
