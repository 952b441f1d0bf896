# The stock transformer of 12 blocks under the schedule of the DEQViT beside it, for
# comparison.
_base_ = [
    '../_base_/models/deq-vit-micro.py',
    '../_base_/schedules/adamw_500.py',
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=12, num_heads=4, feedforward_channels=256),
        img_size=32,
        patch_size=4,
        out_type='avg_featmap',
        with_cls_token=False,
    )
)

sampler = dict(type='InfiniteSampler', shuffle=True)
train_dataloader = dict(batch_size=32, sampler=sampler)
val_dataloader = dict(batch_size=100)
test_dataloader = dict(batch_size=100)
auto_scale_lr = dict(base_batch_size=32)

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=_base_.iters),
    logger=dict(interval=20, log_metric_by_epoch=False),
)
randomness = dict(seed=0)
