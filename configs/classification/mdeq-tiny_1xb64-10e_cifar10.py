# TINY for a machine without a GPU: ten epochs, and the settings that cost least.
_base_ = './mdeq-tiny_2xb64_cifar10.py'

solver = dict(_delete_=True, type='AndersonSolver', stop_mode='rel')
model = dict(
    backbone=dict(
        num_layers=5,
        dropout=0.0,
        forward_solver=dict(max_evals=12, tol=0.1, returns='evaluation', **solver),
        gradient=dict(
            solver=dict(max_evals=8, tol=0.2, history_dtype='bfloat16', **solver)
        ),
    )
)

# An image of the data set stays as it is, and one of another size is made to fit.
test_pipeline = [
    dict(type='ResizeEdge', scale=32, interpolation='area'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

epochs = 10
iters_per_epoch = 782  # 50,000 training images in batches of 64
train_cfg = dict(max_epochs=epochs)
param_scheduler = dict(T_max=epochs)
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=1e-3))

default_hooks = dict(equilibrium=dict(pretrain_iters=7 * iters_per_epoch))
randomness = dict(seed=0)
