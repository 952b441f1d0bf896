_base_ = [
    '../_base_/models/upernet_mdeq-small.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
auto_scale_lr = dict(base_batch_size=4 * 4)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 40000
