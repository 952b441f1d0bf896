_base_ = ['./mdeq-small_4xb32_in1k.py']

model = dict(
    backbone=dict(arch='xl', num_layers=4),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(88, 176, 352, 704),
            head_channels=(32, 64, 128, 256),
            out_channels=2048,
        ),
        dict(type='GlobalAveragePooling'),
    ],
)

# 100 epochs of ceil(1281167 / (8 * 24)) = 6,673 iterations are 667,300.
train_dataloader = dict(batch_size=24)
optim_wrapper = dict(optimizer=dict(weight_decay=7e-5))
auto_scale_lr = dict(base_batch_size=8 * 24)
