# Jacobian regularisation, which lets 8 evaluations do.
_base_ = ['./mdeq-large_4xb32_cifar10.py']

model = dict(
    backbone=dict(
        num_layers=8,
        dropout=0.22,
        forward_solver=dict(max_evals=8),
        gradient=dict(solver=dict(max_evals=7)),
    )
)

# 220 epochs of ceil(50000 / 96) = 521 iterations are 114,620.
train_dataloader = dict(batch_size=96)
auto_scale_lr = dict(base_batch_size=96)

default_hooks = dict(
    equilibrium=dict(pretrain_iters=16000),
    jacobian=dict(
        type='JacobianRegularizationHook',
        weight=0.4,
        freq=0.02,
        stop_epoch=90,
        max_evals_delta=2,
    ),
)
