_base_ = [
    '../_base_/models/mdeq-tiny_cifar.py',
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

# The official recipe trains without augmentation.
pipeline = [dict(type='PackInputs')]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=pipeline))
val_dataloader = dict(batch_size=64)
test_dataloader = dict(batch_size=64)

# 50 epochs of ceil(50000 / (2 * 64)) = 391 iterations are 19,550.
epochs = 50
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='Adam', lr=1e-3, weight_decay=2.5e-6)
)
param_scheduler = dict(
    _delete_=True,
    type='CosineAnnealingLR',
    eta_min=1e-6,
    T_max=epochs,
    by_epoch=True,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=2 * 64)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 3000
