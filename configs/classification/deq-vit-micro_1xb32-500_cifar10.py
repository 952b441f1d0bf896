_base_ = [
    '../_base_/models/deq-vit-micro.py',
    '../_base_/schedules/adamw_500.py',
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

sampler = dict(type='InfiniteSampler', shuffle=True)
train_dataloader = dict(batch_size=32, sampler=sampler)
val_dataloader = dict(batch_size=100)
test_dataloader = dict(batch_size=100)
auto_scale_lr = dict(base_batch_size=32)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = _base_.iters // 2
default_hooks.checkpoint.update(by_epoch=False, interval=_base_.iters)
default_hooks.update(logger=dict(interval=20, log_metric_by_epoch=False))
randomness = dict(seed=0)
