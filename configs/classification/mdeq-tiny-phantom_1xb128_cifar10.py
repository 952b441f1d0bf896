# Phantom gradient, and no unrolled phase, as torchdeq trains it.
_base_ = ['./mdeq-tiny_2xb64_cifar10.py']

model = dict(
    backbone=dict(
        forward_solver=dict(max_evals=22),
        gradient=dict(_delete_=True, type='PhantomGradient', steps=5, damping=0.5),
    )
)

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
)

default_hooks = dict(equilibrium=dict(pretrain_iters=0))
