# The release of 2020: affine parameters after the fusion.
_base_ = ['./mdeq-large_4xb32_cifar10.py']

arch = dict(_delete_=True, channels=(32, 64, 128, 256), downsample_times=0)
model = dict(backbone=dict(arch=arch))
