# MDEQ SMALL with the segmentation head of the official release, as the stock FCNHead.
norm_cfg = dict(type='SyncBN', momentum=0.01, requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='MDEQ',
        arch='small',
        num_layers=3,
        norm_cfg=norm_cfg,
        forward_solver=dict(type='BroydenSolver', max_evals=27, tol=1e-3),
        gradient=dict(
            type='ImplicitGradient',
            solver=dict(
                type='BroydenSolver', max_evals=30, tol=1e-3, history_dtype='bfloat16'
            ),
        ),
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=[32, 64, 128, 256],
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat',
        channels=480,
        kernel_size=1,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
