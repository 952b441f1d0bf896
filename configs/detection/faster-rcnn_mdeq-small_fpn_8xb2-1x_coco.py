_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='MDEQ',
        arch='small',
        norm_eval=True,
        # Set it to None to train from scratch, and norm_eval to False.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/mdeq-small_4xb32_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)

default_hooks = _base_.mdeq_hooks
# Half of the 12 epochs of 7,330 iterations.
default_hooks.equilibrium.pretrain_iters = 44000
