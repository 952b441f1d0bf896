# MDEQ TINY of the official release (2021) with its classification head.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MDEQ',
        arch='tiny',
        num_layers=10,
        dropout=0.25,
        forward_solver=dict(type='BroydenSolver', max_evals=18, tol=1e-3),
        gradient=dict(
            type='ImplicitGradient',
            solver=dict(type='BroydenSolver', max_evals=20, tol=1e-3),
        ),
    ),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(24, 24),
            head_channels=(8, 16),
            out_channels=200,
        ),
        dict(type='GlobalAveragePooling'),
    ],
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=200,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
