"""A small model with each decode head and each neck that MMSegmentation ships.

The arguments are those of the toolbox's own configs, with few channels.
"""

CHANNELS = (8, 16, 24, 32)
NUM_CLASSES = 5
NORM = dict(type='BN', requires_grad=True)
EVERY_BRANCH = dict(in_channels=list(CHANNELS), in_index=[0, 1, 2, 3])
COARSEST = dict(in_channels=CHANNELS[3], in_index=3)
CONCATENATED = dict(EVERY_BRANCH, input_transform='resize_concat')
FOUR_OF_16 = dict(in_channels=[16] * 4, in_index=[0, 1, 2, 3])
# Images to be predicted are padded to multiples of the coarsest stride.
PADDED = dict(test_cfg=dict(size_divisor=32))


def head(kind, *inputs, **settings):
    """The config of a head, with what most of them ask for."""
    cfg = dict(
        type=kind,
        channels=16,
        num_classes=NUM_CLASSES,
        norm_cfg=NORM,
        align_corners=False,
    )
    for one in inputs:
        cfg.update(one)
    cfg.update(settings)
    return cfg


def decoder(*args, **settings):
    return dict(model=dict(decode_head=head(*args, **settings)))


def cascade(first, second, **settings):
    heads = [first, second]
    model = dict(type='CascadeEncoderDecoder', num_stages=2, decode_head=heads)
    return dict(model=dict(model, **settings))


def fcn(*inputs, **settings):
    simple = dict(kernel_size=1, num_convs=1, concat_input=False)
    return head('FCNHead', *inputs, **simple, **settings)


def necked(neck, decode_head, **settings):
    return dict(model=dict(neck=neck, decode_head=decode_head), **settings)


UPER = head('UPerHead', EVERY_BRANCH, pool_scales=(1, 2))
FPN = dict(type='FPN', in_channels=list(CHANNELS), out_channels=16, num_outs=4)
FPN_HEAD = head('FPNHead', FOUR_OF_16, feature_strides=[4, 8, 16, 32])
NON_LOCAL = dict(COARSEST, reduction=2, use_scale=True, mode='embedded_gaussian')
LRASPP = dict(
    in_channels=CHANNELS[:3],
    in_index=(0, 1, 2),
    input_transform='multiple_select',
    branch_channels=(8, 16),
)

K_NET = dict(
    type='IterativeDecodeHead',
    num_stages=2,
    kernel_generate_head=UPER,
    kernel_update_head=[
        dict(
            type='KernelUpdateHead',
            num_classes=NUM_CLASSES,
            num_heads=2,
            num_mask_fcs=1,
            feedforward_channels=16,
            in_channels=16,
            out_channels=16,
            feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),
            kernel_updator_cfg=dict(
                type='KernelUpdator',
                in_channels=16,
                feat_channels=16,
                out_channels=16,
                act_cfg=dict(type='ReLU', inplace=True),
                norm_cfg=dict(type='LN'),
            ),
        )
    ]
    * 2,
)

STDC = head(
    'STDCHead',
    in_channels=8,
    in_index=0,
    num_convs=1,
    num_classes=2,
    concat_input=False,
    boundary_threshold=0.1,
    align_corners=True,
    loss_decode=[
        dict(type='CrossEntropyLoss', loss_name='loss_ce', use_sigmoid=True),
        dict(type='DiceLoss', loss_name='loss_dice'),
    ],
)

SAN = dict(
    type='SideAdapterCLIPHead',
    num_classes=NUM_CLASSES,
    deep_supervision_idxs=[0],
    san_cfg=dict(
        in_channels=3,
        clip_channels=16,
        embed_dims=16,
        num_queries=4,
        fusion_index=[0],
        cfg_encoder=dict(num_encode_layer=1, num_heads=2, mlp_ratio=1),
        cfg_decoder=dict(
            num_heads=2,
            num_layers=1,
            embed_channels=16,
            mlp_channels=16,
            num_mlp=1,
            rescale=True,
        ),
    ),
    maskgen_cfg=dict(
        sos_token_num=4,
        num_layers=1,
        embed_dims=16,
        num_heads=2,
        mlp_ratio=1,
        out_dims=16,
    ),
    train_cfg=None,
)


def mask_head(kind, **settings):
    """MaskFormer or Mask2Former, whose parts are those of MMDetection."""
    attention = dict(embed_dims=16, num_heads=2, batch_first=True)
    ffn = dict(embed_dims=16, feedforward_channels=16, num_fcs=2)
    layer = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)
    sizes = dict(in_channels=list(CHANNELS), feat_channels=16, out_channels=16)
    defaults = dict(
        type=kind,
        num_classes=NUM_CLASSES,
        num_queries=6,
        enforce_decoder_input_project=False,
        positional_encoding=dict(num_feats=8, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True, num_layers=1, layer_cfg=layer, init_cfg=None
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss', class_weight=[1.0] * NUM_CLASSES + [0.1]
        ),
        loss_dice=dict(type='mmdet.DiceLoss', activate=True, naive_dice=True, eps=1.0),
    )
    return dict(
        model=dict(decode_head=dict(defaults, **sizes, **settings)), needs='mmdet'
    )


def assigner(mask_cost):
    costs = [
        dict(type='mmdet.ClassificationCost'),
        mask_cost,
        dict(type='mmdet.DiceCost', pred_act=True, eps=1.0),
    ]
    return dict(
        assigner=dict(type='mmdet.HungarianAssigner', match_costs=costs),
        sampler=dict(type='mmdet.MaskPseudoSampler'),
    )


MASK_FORMER = mask_head(
    'MaskFormerHead',
    in_index=[0, 1, 2, 3],
    pixel_decoder=dict(
        type='mmdet.PixelDecoder',
        norm_cfg=dict(type='GN', num_groups=4),
        act_cfg=dict(type='ReLU'),
    ),
    loss_mask=dict(type='mmdet.FocalLoss', use_sigmoid=True),
    train_cfg=assigner(dict(type='mmdet.FocalLossCost', binary_input=True)),
)
MASK_2_FORMER = mask_head(
    'Mask2FormerHead',
    strides=[4, 8, 16, 32],
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=4),
        act_cfg=dict(type='ReLU'),
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=dict(
                    embed_dims=16,
                    num_heads=2,
                    num_levels=3,
                    num_points=2,
                    batch_first=True,
                ),
                ffn_cfg=dict(embed_dims=16, feedforward_channels=16, num_fcs=2),
            ),
        ),
        positional_encoding=dict(num_feats=8, normalize=True),
    ),
    loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
    train_cfg=dict(
        num_points=64,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        **assigner(dict(type='mmdet.CrossEntropyLossCost', use_sigmoid=True)),
    ),
)

VPD_CHANNELS = (16, 16, 24, 32)
VPD = dict(
    model=dict(
        type='DepthEstimator',
        decode_head=dict(
            type='VPDDepthHead',
            in_channels=list(VPD_CHANNELS),
            embed_dim=4,
            feature_dim=32,
            num_deconv_filters=(8, 8, 8),
        ),
    ),
    channels=VPD_CHANNELS,
)

SETR_MLA = head('SETRMLAHead', FOUR_OF_16, mla_channels=4)
MLA = dict(type='MLANeck', in_channels=[16] * 4, out_channels=16)


def one_size(in_channels, scales):
    neck = dict(type='MultiLevelNeck', in_channels=in_channels, out_channels=16)
    return necked([dict(neck, scales=scales), MLA], SETR_MLA)


HEADS = {
    'FCNHead': dict(
        model=dict(decode_head=fcn(CONCATENATED, channels=80, align_corners=True))
    ),
    'PSPHead': decoder('PSPHead', COARSEST, pool_scales=(1, 2)),
    'ASPPHead': decoder('ASPPHead', COARSEST, dilations=(1, 2)),
    'DepthwiseSeparableASPPHead': decoder(
        'DepthwiseSeparableASPPHead',
        COARSEST,
        dilations=(1, 2),
        c1_in_channels=8,
        c1_channels=8,
    ),
    'UPerHead': dict(model=dict(decode_head=UPER)),
    'SegformerHead': decoder('SegformerHead', EVERY_BRANCH),
    'OCRHead': cascade(
        fcn(CONCATENATED, channels=80), head('OCRHead', CONCATENATED, ocr_channels=8)
    ),
    'ANNHead': decoder(
        'ANNHead',
        in_channels=[24, 32],
        in_index=[2, 3],
        project_channels=8,
        query_scales=(1,),
        key_pool_scales=(1, 2),
    ),
    'APCHead': decoder('APCHead', COARSEST, pool_scales=(1, 2)),
    'CCHead': decoder('CCHead', COARSEST, recurrence=2),
    'DAHead': decoder('DAHead', COARSEST, pam_channels=8),
    'DMHead': decoder('DMHead', COARSEST, filter_sizes=(1, 3)),
    'DNLHead': decoder('DNLHead', NON_LOCAL),
    'DepthwiseSeparableFCNHead': decoder(
        'DepthwiseSeparableFCNHead', COARSEST, num_convs=1, concat_input=False
    ),
    'EMAHead': decoder(
        'EMAHead', COARSEST, ema_channels=16, num_bases=4, num_stages=2, momentum=0.1
    ),
    'EncHead': decoder(
        'EncHead',
        in_channels=[16, 24, 32],
        in_index=(1, 2, 3),
        num_codes=4,
        use_se_loss=True,
        add_lateral=True,
        loss_se_decode=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.2),
    ),
    'GCHead': decoder(
        'GCHead',
        COARSEST,
        ratio=1 / 4,
        pooling_type='att',
        fusion_types=('channel_add',),
    ),
    'ISAHead': decoder('ISAHead', COARSEST, isa_channels=8, down_factor=(2, 2)),
    'IterativeDecodeHead': dict(model=dict(decode_head=K_NET)),
    'LRASPPHead': decoder('LRASPPHead', LRASPP),
    'LRASPPHead, larger': dict(
        decoder('LRASPPHead', LRASPP),
        # Maps of stride 1, 2 and 4.
        backbone=dict(downsample_times=0),
        trained=(196, 196),
        predicted=(197, 211),
    ),
    'LightHamHead': decoder(
        'LightHamHead',
        in_channels=[16, 24, 32],
        in_index=[1, 2, 3],
        ham_channels=16,
        norm_cfg=dict(type='GN', num_groups=4),
        ham_kwargs=dict(MD_R=4, train_steps=2, eval_steps=2, rand_init=False),
    ),
    'Mask2FormerHead': MASK_2_FORMER,
    'MaskFormerHead': MASK_FORMER,
    'NLHead': decoder('NLHead', NON_LOCAL),
    'PSAHead': dict(
        decoder('PSAHead', COARSEST, mask_size=(3, 3), channels=8), compiled=True
    ),
    'PointHead + FPN': cascade(
        FPN_HEAD,
        dict(
            type='PointHead',
            in_channels=[16],
            in_index=[0],
            channels=16,
            num_fcs=2,
            coarse_pred_each_layer=True,
            num_classes=NUM_CLASSES,
        ),
        neck=FPN,
        train_cfg=dict(num_points=32, oversample_ratio=3, importance_sample_ratio=0.75),
        test_cfg=dict(
            mode='whole',
            subdivision_steps=2,
            subdivision_num_points=32,
            scale_factor=2,
        ),
    ),
    'SETRUPHead': decoder('SETRUPHead', COARSEST, num_convs=2, up_scale=2),
    'SegmenterMaskTransformerHead': decoder(
        'SegmenterMaskTransformerHead',
        COARSEST,
        num_layers=1,
        num_heads=2,
        embed_dims=16,
        dropout_ratio=0.0,
        norm_cfg=dict(type='LN'),
    ),
    'STDCHead': dict(
        model=dict(decode_head=fcn(CONCATENATED, channels=80), auxiliary_head=STDC)
    ),
    'VPDDepthHead': VPD,
    'VPDDepthHead, padded': dict(VPD, preprocessor=PADDED),
    'DPTHead': dict(
        decoder(
            'DPTHead',
            in_channels=(16,) * 4,
            in_index=(0, 1, 2, 3),
            input_transform='multiple_select',
            embed_dims=16,
            post_process_channels=[16] * 4,
        ),
        channels=(16,) * 4,
    ),
    'PIDHead': decoder('PIDHead', in_channels=32),
    'DDRHead': decoder('DDRHead', in_channels=32),
    'SideAdapterCLIPHead': dict(model=dict(decode_head=SAN), pretrained=True),
}
NECKS = {
    'FPNHead + FPN': necked(FPN, FPN_HEAD),
    'UPerHead + MultiLevelNeck': necked(
        dict(
            type='MultiLevelNeck',
            in_channels=list(CHANNELS),
            out_channels=16,
            scales=[1, 1, 1, 1],
        ),
        head('UPerHead', FOUR_OF_16, pool_scales=(1, 2)),
    ),
    'UPerHead + Feature2Pyramid': necked(
        dict(type='Feature2Pyramid', embed_dim=16, norm_cfg=NORM),
        head('UPerHead', FOUR_OF_16, pool_scales=(1, 2)),
        channels=(16,) * 4,
    ),
    'FCNHead + JPU': necked(
        dict(type='JPU', in_channels=CHANNELS[1:], mid_channels=8),
        fcn(in_channels=32, in_index=2),
        backbone=dict(out_indices=(1, 2, 3)),
    ),
    'FCNHead + ICNeck': necked(
        dict(type='ICNeck', in_channels=CHANNELS[:3], out_channels=16),
        fcn(in_channels=16, in_index=2),
        backbone=dict(out_indices=(0, 1, 2)),
    ),
    'SETRMLAHead + MLANeck': necked(
        dict(MLA, in_channels=list(CHANNELS)),
        SETR_MLA,
    ),
    'SETRMLAHead + MultiLevelNeck + MLANeck': one_size(list(CHANNELS), [1, 2, 4, 8]),
    'SETRMLAHead + MultiLevelNeck + MLANeck, padded': dict(
        one_size(list(CHANNELS), [1, 2, 4, 8]), preprocessor=PADDED
    ),
    'SETRMLAHead + MultiLevelNeck + MLANeck, one branch': dict(
        one_size([32], [1, 1, 1, 1]), backbone=dict(out_indices=(3,))
    ),
    'UPerHead + auxiliary heads, sliding windows': dict(
        model=dict(
            decode_head=UPER,
            auxiliary_head=[
                fcn(in_channels=24, in_index=2),
                fcn(in_channels=16, in_index=1),
            ],
            test_cfg=dict(mode='slide', crop_size=(48, 64), stride=(32, 48)),
        )
    ),
}
