# MDEQ SMALL for ImageNet of the official release (2021) with its classification head.
# The release measures the residual absolutely and so spends nearly always the budget.
solver = dict(type='BroydenSolver', tol=1e-3, stop_mode='abs')
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MDEQ',
        arch='small',
        num_layers=5,
        forward_solver=dict(max_evals=26, **solver),
        gradient=dict(
            type='ImplicitGradient',
            solver=dict(max_evals=27, history_dtype='bfloat16', **solver),
        ),
    ),
    neck=[
        dict(
            type='MDEQFuse',
            in_channels=(32, 64, 128, 256),
            head_channels=(24, 48, 96, 192),
            out_channels=2048,
        ),
        dict(type='GlobalAveragePooling'),
    ],
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
