# Written by tools/dataset_converters/digits.py. Two random views of each image and no
# label. A digit is another one in a mirror, so nothing is flipped.
dataset_type = 'CustomDataset'
data_preprocessor = dict(
    type='SelfSupDataPreprocessor', mean=[78] * 3, std=[96] * 3, to_rgb=True
)

view = [
    dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(0.4, 1.0)),
    dict(
        type='Rotate', magnitude_range=(0, 25), magnitude_std='inf', pad_val=0, prob=1.0
    ),
]
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiView', num_views=2, transforms=[view]),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type,
        data_root='data/digits',
        data_prefix='train',
        with_label=False,
        pipeline=pipeline,
    ),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
