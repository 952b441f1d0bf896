_base_ = ['./fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py']

channels = [80, 160, 320, 640]
model = dict(
    backbone=dict(
        arch='large',
        dropout=0.03,
        init_cfg=dict(checkpoint='checkpoints/mdeq-large_4xb28_in1k.pth'),
    ),
    decode_head=dict(in_channels=channels, channels=sum(channels)),
)

optim_wrapper = dict(optimizer=dict(weight_decay=3e-4))
