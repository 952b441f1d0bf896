_base_ = [
    '../_base_/models/fcn_mdeq-small.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/schedules/schedule_40k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

crop_size = (512, 1024)
# fmt: off
class_weight = [
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
]
# fmt: on
# The release measures the residual absolutely and so spends nearly always the budget.
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        dropout=0.05,
        forward_solver=dict(stop_mode='abs'),
        gradient=dict(solver=dict(stop_mode='abs')),
        # Set it to None to train from scratch.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/mdeq-small_4xb32_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        loss_decode=dict(
            _delete_=True,
            type='ClassWeightedCrossEntropyLoss',
            class_weight=class_weight,
        )
    ),
)

# The long side, 2048 pixels, is scaled by 0.5, 0.6, ..., 2.1.
scales = [(round(204.8 * tenths), round(102.4 * tenths)) for tenths in range(5, 22)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=3, dataset=dict(pipeline=train_pipeline))

iters_per_epoch = 2975 // (4 * 3)  # 247 from 2,975 training images
max_iters = 500 * iters_per_epoch
optim_wrapper = dict(optimizer=dict(weight_decay=2e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=max_iters, by_epoch=False)
]
train_cfg = dict(max_iters=max_iters, val_interval=10 * iters_per_epoch)
auto_scale_lr = dict(base_batch_size=4 * 3)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 60000
default_hooks.checkpoint.interval = 10 * iters_per_epoch
