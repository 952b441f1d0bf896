# Phantom gradient after a plain fixed-point iteration, and no unrolled phase, as
# torchdeq trains it. It does not say the damping of the gradient; this is the default.
_base_ = ['./mdeq-small_4xb32_in1k.py']

model = dict(
    backbone=dict(
        forward_solver=dict(type='PicardSolver', damping=1),
        gradient=dict(_delete_=True, type='PhantomGradient', steps=5),
    )
)

train_dataloader = dict(batch_size=64)

default_hooks = dict(equilibrium=dict(pretrain_iters=0))
