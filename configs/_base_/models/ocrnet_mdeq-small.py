# MDEQ SMALL with the heads of OCRNet, as on the stock HRNet: the FCNHead of
# fcn_mdeq-small, and an OCRHead that refines its prediction.
_base_ = ['./fcn_mdeq-small.py']

coarse_loss = dict(_base_.model.decode_head.loss_decode, loss_weight=0.4)
model = dict(
    type='CascadeEncoderDecoder',
    num_stages=2,
    backbone=dict(
        # Set it to None to train from scratch.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/mdeq-small_4xb32_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=[
        dict(_base_.model.decode_head, align_corners=False, loss_decode=coarse_loss),
        dict(
            type='OCRHead',
            in_channels=[32, 64, 128, 256],
            in_index=[0, 1, 2, 3],
            input_transform='resize_concat',
            channels=512,
            ocr_channels=256,
            dropout_ratio=0,
            num_classes=19,
            norm_cfg=_base_.norm_cfg,
            align_corners=False,
            loss_decode=dict(
                type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
            ),
        ),
    ],
)
