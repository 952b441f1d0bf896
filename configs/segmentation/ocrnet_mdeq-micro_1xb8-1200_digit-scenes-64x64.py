_base_ = ['./fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py']

coarse_loss = dict(_base_.common.loss_decode, loss_weight=0.4)
model = dict(
    type='CascadeEncoderDecoder',
    num_stages=2,
    decode_head=[
        dict(_base_.model.decode_head, loss_decode=coarse_loss),
        dict(
            type='OCRHead',
            input_transform='resize_concat',
            channels=64,
            ocr_channels=32,
            **_base_.branches,
            **_base_.common,
        ),
    ],
)
