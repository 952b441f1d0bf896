# MDEQ LARGE for CIFAR of the official release (2021) with its classification head.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MDEQ',
        arch='cifar-large',
        num_layers=10,
        dropout=0.3,
        forward_solver=dict(type='BroydenSolver', max_evals=18, tol=1e-3),
        gradient=dict(
            type='ImplicitGradient',
            solver=dict(type='BroydenSolver', max_evals=20, tol=1e-3),
        ),
    ),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(32, 64, 128, 256),
            head_channels=(14, 28, 56, 112),
            out_channels=1680,
        ),
        dict(type='GlobalAveragePooling'),
    ],
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1680,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
