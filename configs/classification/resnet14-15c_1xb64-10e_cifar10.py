# A stock ResNet with as many parameters as MDEQ TINY (154 against 159 thousand), under
# the schedule of the MDEQ beside it, for comparison.
_base_ = [
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/schedules/cifar10_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        stem_channels=15,
        base_channels=15,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=60,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)

pipeline = [dict(type='PackInputs')]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=pipeline))
val_dataloader = dict(batch_size=64)
test_dataloader = dict(batch_size=64)

epochs = 10
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='Adam', lr=1e-2, weight_decay=2.5e-6)
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
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
