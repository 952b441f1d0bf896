# Phantom gradient, and no unrolled phase, as torchdeq trains it.
_base_ = ['./mdeq-large_4xb32_cifar10.py']

model = dict(
    backbone=dict(
        gradient=dict(_delete_=True, type='PhantomGradient', steps=5, damping=0.7)
    )
)

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
)

default_hooks = dict(equilibrium=dict(pretrain_iters=0))
