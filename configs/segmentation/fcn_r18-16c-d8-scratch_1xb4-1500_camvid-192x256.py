# The stock ResNet-18, a quarter as wide: as many parameters as the MDEQ beside it (804
# against 792 thousand), for comparison.
_base_ = './fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'

model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    decode_head=dict(in_channels=128, channels=32),
    auxiliary_head=dict(in_channels=64, channels=16),
)
