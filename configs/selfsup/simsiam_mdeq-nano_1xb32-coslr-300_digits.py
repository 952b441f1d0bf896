_base_ = [
    '../_base_/datasets/digits_two_views.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mdeq_runtime.py',
]

norm_cfg = dict(type='BN1d')
model = dict(
    type='SimSiam',
    backbone=dict(
        type='MDEQ',
        arch=dict(channels=(16, 32), expansion=2, downsample_times=0),
        num_layers=3,
        out_indices=[1],
        forward_solver=dict(
            type='AndersonSolver', max_evals=12, tol=1e-2, returns='evaluation'
        ),
        gradient=dict(
            type='ImplicitGradient',
            solver=dict(type='AndersonSolver', max_evals=8, tol=1e-2),
        ),
    ),
    neck=dict(
        type='NonLinearNeck',
        in_channels=32,
        hid_channels=128,
        out_channels=128,
        num_layers=3,
        with_last_bn_affine=False,
        norm_cfg=norm_cfg,
    ),
    head=dict(
        type='LatentPredictHead',
        loss=dict(type='CosineSimilarityLoss'),
        predictor=dict(
            type='NonLinearNeck',
            in_channels=128,
            hid_channels=32,
            out_channels=128,
            with_avg_pool=False,
            with_last_bn=False,
            with_last_bias=True,
            norm_cfg=norm_cfg,
        ),
    ),
)

iters = 300
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-3))
param_scheduler = dict(type='CosineAnnealingLR', T_max=iters, by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters)
auto_scale_lr = dict(base_batch_size=32)
log_processor = dict(by_epoch=False)

default_hooks = _base_.mdeq_hooks
default_hooks.equilibrium.pretrain_iters = 260
default_hooks.checkpoint.update(by_epoch=False, interval=iters)
default_hooks.update(logger=dict(interval=20))
randomness = dict(seed=0)
