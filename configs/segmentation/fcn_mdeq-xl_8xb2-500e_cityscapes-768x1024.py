_base_ = ['./fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py']

crop_size = (768, 1024)
channels = [88, 176, 352, 704]
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='xl',
        dropout=0.04,
        init_cfg=dict(checkpoint='checkpoints/mdeq-xl_8xb24_in1k.pth'),
    ),
    decode_head=dict(in_channels=channels, channels=sum(channels)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomChoiceResize', scales={{_base_.scales}}, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))

iters_per_epoch = 2975 // (8 * 2)  # 185 from 2,975 training images
max_iters = 500 * iters_per_epoch
optim_wrapper = dict(optimizer=dict(weight_decay=3e-4))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=max_iters, by_epoch=False)
]
train_cfg = dict(max_iters=max_iters, val_interval=10 * iters_per_epoch)
auto_scale_lr = dict(base_batch_size=8 * 2)

default_hooks = dict(
    equilibrium=dict(pretrain_iters=40000),
    checkpoint=dict(interval=10 * iters_per_epoch),
)
