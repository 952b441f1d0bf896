_base_ = ['./mdeq-small_4xb32_in1k.py']

model = dict(
    backbone=dict(arch='large', num_layers=4),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(80, 160, 320, 640),
            head_channels=(32, 64, 128, 256),
            out_channels=2048,
        ),
        dict(type='GlobalAveragePooling'),
    ],
)

# 100 epochs of ceil(1281167 / (4 * 28)) = 11,439 iterations are 1,143,900.
train_dataloader = dict(batch_size=28)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
auto_scale_lr = dict(base_batch_size=4 * 28)
