# Loops and schedule of a MultiTaskModel. It belongs to no toolbox: each task names its
# own by _scope_.
default_scope = 'mmengine'
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01))
train_cfg = dict(type='MultiTaskTrainLoop')
val_cfg = dict(type='MultiTaskValLoop')
test_cfg = dict(type='MultiTaskTestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False)
)
randomness = dict(seed=0)
