# A vision transformer at equilibrium, small enough for a CPU, on images as of CIFAR.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='DEQViT',
        arch=dict(embed_dims=64, num_heads=4, feedforward_channels=256),
        img_size=32,
        patch_size=4,
        out_type='avg_featmap',
        forward_solver=dict(
            type='AndersonSolver', max_evals=16, tol=1e-3, returns='evaluation'
        ),
        gradient=dict(type='PhantomGradient', steps=5, damping=0.5),
        num_layers=6,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
