"""Every neck, head and retriever of MMPretrain among stock parts, and what they do.

    python tests/integration/classification_heads.py

writes the tables of docs/en/classification_heads.md.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mmpretrain.models
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.structures import DataSample, MultiTaskDataSample

import mdeq_mm  # noqa: F401  registers the backbone

PAGE = Path(__file__).resolve().parents[2] / 'docs/en/classification_heads.md'
CHANNELS = (8, 16, 32, 64)
WIDTH = CHANNELS[-1]
MDEQ = dict(
    type='MDEQ',
    arch=dict(channels=CHANNELS, num_groups=4, expansion=1),
    forward_solver=dict(type='AndersonSolver', max_evals=10, tol=1e-3),
    gradient=dict(
        type='ImplicitGradient', solver=dict(type='PicardSolver', max_evals=4)
    ),
)
# Its four maps have the same channels and strides.
RESNET = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8)
BACKBONES = {'MDEQ': MDEQ, 'ResNet-18': RESNET}
ALL, LAST = (0, 1, 2, 3), (3,)

N_CLASSES = 5
# A head that takes two or three tokens would mistake a batch of as many for them.
BATCH = 4
LABELS = (1, 3, 4, 2)
ODD_SIZE = (65, 97)
PREPROCESSOR = dict(mean=[127.5] * 3, std=[127.5] * 3)
POOLING = dict(type='GlobalAveragePooling')
LINEAR = dict(type='LinearClsHead', in_channels=WIDTH, num_classes=N_CLASSES)
CROSS_ENTROPY = dict(type='CrossEntropyLoss')
COSINE = dict(type='CosineSimilarityLoss')


def single_labels():
    return [DataSample().set_gt_label(label) for label in LABELS]


def multiple_labels():
    scores = torch.eye(N_CLASSES)[list(LABELS)] + torch.eye(N_CLASSES)[0]
    return [DataSample().set_gt_score(score) for score in scores]


def labels_of_tasks():
    """The last image has no label for the second task."""
    samples = []
    for label in LABELS:
        sample = MultiTaskDataSample()
        sample.set_field(DataSample().set_gt_label(label), 'first')
        if label != LABELS[-1]:
            sample.set_field(DataSample().set_gt_label(0), 'second')
        samples.append(sample)
    return samples


def no_labels():
    return [DataSample() for _ in LABELS]


@dataclass(frozen=True)
class Row:
    """A model of stock parts.

    Args:
        model (Callable): Makes its config, given that of a backbone.
        samples (Callable): Makes the data samples of the batch.
        views (int): Batches of images that its loss takes.
        four_maps (Exception, optional): What it raises with four maps; None if it
            takes them.
        message (str): What that error says.
    """

    model: Callable[[dict], dict]
    samples: Callable[[], list] = single_labels
    views: int = 1
    four_maps: type[Exception] | None = None
    message: str = ''

    @property
    def maps(self):
        return ALL if self.four_maps is None else LAST


def classifier(neck, head, **kwargs):
    def model(backbone):
        return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)

    return Row(model, **kwargs)


def linear(kind, **kwargs):
    """A head behind the pooled maps, of which it takes the last."""
    head = dict(type=kind, num_classes=N_CLASSES, in_channels=WIDTH, **kwargs)
    return classifier(POOLING, head)


def self_supervised(kind, neck, head, views=2, **kwargs):
    expects = {
        # It takes the first of all maps, whose channels are others.
        'SwAVNeck': dict(four_maps=RuntimeError, message='cannot be multiplied'),
        'NonLinearNeck': dict(four_maps=AssertionError),
        'MoCoV2Neck': dict(four_maps=AssertionError),
        'DenseCLNeck': dict(four_maps=AssertionError),
    }[neck['type']]

    def model(backbone):
        return dict(type=kind, backbone=backbone, neck=neck, head=head, **kwargs)

    return Row(model, no_labels, views, **expects)


def retriever(backbone):
    return dict(
        type='ImageToImageRetriever',
        image_encoder=[backbone, POOLING],
        head=dict(type='ArcFaceClsHead', in_channels=WIDTH, num_classes=N_CLASSES),
        prototype=torch.eye(WIDTH)[:4],
    )


def non_linear(in_channels=WIDTH, **kwargs):
    return dict(
        type='NonLinearNeck',
        in_channels=in_channels,
        hid_channels=16,
        out_channels=8,
        norm_cfg=dict(type='BN1d'),
        **kwargs,
    )


PREDICTOR = non_linear(8, with_avg_pool=False)
LATENT = dict(type='LatentPredictHead', loss=COSINE, predictor=PREDICTOR)
CONTRASTIVE = dict(type='ContrastiveHead', loss=CROSS_ENTROPY)
PROJECTION = dict(in_channels=WIDTH, hid_channels=16, out_channels=8)

ROWS = {
    'LinearClsHead': linear('LinearClsHead'),
    'StackedLinearClsHead': linear(
        'StackedLinearClsHead', mid_channels=[16], norm_cfg=dict(type='BN1d')
    ),
    'ClsHead': classifier(
        dict(type='LinearNeck', in_channels=WIDTH, out_channels=5, gap_dim=2),
        dict(type='ClsHead'),
    ),
    'MultiLabelClsHead': classifier(
        dict(type='LinearNeck', in_channels=WIDTH, out_channels=5, gap_dim=2),
        dict(type='MultiLabelClsHead'),
        samples=multiple_labels,
    ),
    'MultiLabelLinearClsHead': classifier(
        POOLING,
        dict(type='MultiLabelLinearClsHead', in_channels=WIDTH, num_classes=N_CLASSES),
        samples=multiple_labels,
    ),
    'CSRAClsHead': classifier(
        None,
        dict(
            type='CSRAClsHead',
            in_channels=WIDTH,
            num_classes=N_CLASSES,
            num_heads=2,
            lam=0.1,
        ),
        samples=multiple_labels,
    ),
    'ArcFaceClsHead': linear('ArcFaceClsHead', scale=8.0),
    'MultiTaskHead': classifier(
        POOLING,
        dict(type='MultiTaskHead', task_heads=dict(first=LINEAR, second=LINEAR)),
        samples=labels_of_tasks,
    ),
    'VisionTransformerClsHead': linear(
        'VisionTransformerClsHead',
        # Its own initialization is zero, which lets no gradient through.
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    ),
    'EfficientFormerClsHead': linear('EfficientFormerClsHead', distillation=False),
    'LeViTClsHead': linear('LeViTClsHead', distillation=False),
    'VigClsHead': linear('VigClsHead', hidden_dim=16),
    'GlobalAveragePooling': classifier(POOLING, LINEAR),
    'GeneralizedMeanPooling': classifier(dict(type='GeneralizedMeanPooling'), LINEAR),
    'HRFuseScales': classifier(
        [dict(type='HRFuseScales', in_channels=CHANNELS, out_channels=WIDTH), POOLING],
        LINEAR,
    ),
    'LinearNeck': classifier(
        dict(type='LinearNeck', in_channels=WIDTH, out_channels=WIDTH, gap_dim=2),
        LINEAR,
    ),
    'ClsBatchNormNeck': classifier(
        [POOLING, dict(type='ClsBatchNormNeck', input_features=WIDTH)],
        LINEAR,
        four_maps=RuntimeError,
        message='running_mean should contain 8 elements not 64',
    ),
    'ImageToImageRetriever': Row(retriever),
    'SimSiam': self_supervised('SimSiam', non_linear(), LATENT),
    'BYOL': self_supervised('BYOL', non_linear(), LATENT),
    'SimCLR': self_supervised('SimCLR', non_linear(), CONTRASTIVE),
    'MoCo': self_supervised(
        'MoCo',
        dict(type='MoCoV2Neck', **PROJECTION),
        CONTRASTIVE,
        queue_len=2 * BATCH,
        feat_dim=8,
    ),
    'MoCoV3': self_supervised(
        'MoCoV3',
        non_linear(),
        dict(type='MoCoV3Head', predictor=PREDICTOR, loss=CROSS_ENTROPY),
    ),
    'DenseCL': self_supervised(
        'DenseCL',
        dict(type='DenseCLNeck', **PROJECTION),
        CONTRASTIVE,
        queue_len=2 * BATCH,
        feat_dim=8,
    ),
    'SwAV': self_supervised(
        'SwAV',
        dict(type='SwAVNeck', norm_cfg=dict(type='BN1d'), **PROJECTION),
        dict(
            type='SwAVHead',
            loss=dict(type='SwAVLoss', feat_dim=8, num_crops=[2], num_prototypes=6),
        ),
    ),
    'BarlowTwins': self_supervised(
        'BarlowTwins',
        non_linear(),
        dict(
            type='LatentCrossCorrelationHead',
            in_channels=8,
            loss=dict(type='CrossCorrelationLoss'),
        ),
    ),
}


@dataclass(frozen=True)
class Refusal:
    """A model that no backbone of feature maps serves, what it raises, and why."""

    row: Row
    error: type[Exception]
    message: str
    reason: str


def masked_samples():
    return [DataSample().set_mask(torch.zeros(12, 16)) for _ in LABELS]


REFUSALS = {
    'DeiTClsHead': Refusal(
        linear('DeiTClsHead'),
        ValueError,
        'too many values to unpack',
        'It takes a class token and a distillation token.',
    ),
    'ConformerHead': Refusal(
        classifier(
            POOLING,
            dict(type='ConformerHead', num_classes=5, in_channels=[WIDTH, WIDTH]),
        ),
        AssertionError,
        '',
        'It takes the two outputs of Conformer, of convolutions and of tokens.',
    ),
    'MAE': Refusal(
        Row(
            lambda backbone: dict(
                type='MAE',
                backbone=backbone,
                neck=dict(
                    type='MAEPretrainDecoder',
                    embed_dim=8,
                    decoder_embed_dim=8,
                    decoder_depth=1,
                    decoder_num_heads=1,
                ),
                head=dict(
                    type='MAEPretrainHead',
                    loss=dict(type='PixelReconstructionLoss', criterion='L2'),
                ),
            ),
            no_labels,
        ),
        ValueError,
        'too many values to unpack',
        'The backbone must mask patches itself and say which.',
    ),
    'SimMIM': Refusal(
        Row(
            lambda backbone: dict(
                type='SimMIM',
                backbone=backbone,
                neck=dict(
                    type='SimMIMLinearDecoder', in_channels=WIDTH, encoder_stride=4
                ),
                head=dict(
                    type='SimMIMHead',
                    patch_size=4,
                    loss=dict(type='PixelReconstructionLoss', criterion='L1'),
                ),
            ),
            masked_samples,
        ),
        TypeError,
        'takes 2 positional arguments but 3 were given',
        'The backbone must take a mask, too.',
    ),
}

# What is not run: it is made for another kind of backbone.
NOT_FOR_MAPS = {
    'Masked images, as for MAE and SimMIM': (
        *('BEiT', 'CAE', 'EVA', 'MFF', 'MILAN', 'MaskFeat', 'MixMIM', 'iTPN'),
        *('BEiTV1Head', 'BEiTV2Head', 'CAEHead', 'MIMHead', 'MixMIMPretrainHead'),
        *('iTPNClipHead', 'BEiTV2Neck', 'CAENeck', 'MILANPretrainDecoder'),
        *('MixMIMPretrainDecoder', 'iTPNPretrainDecoder'),
    ),
    'Masked images, in convolutions that skip what is masked': (
        *('SparK', 'SparKLightDecoder', 'SparKPretrainHead'),
    ),
    'Models of images and text': (
        *('GroundingHead', 'ITCHead', 'ITMHead', 'SeqGenerationHead'),
        'VQAGenerationHead',
    ),
}


def registered():
    """Names of the necks, heads, retrievers and self-supervised models."""
    names = set()
    for name, cls in mmpretrain.registry.MODELS.module_dict.items():
        room = cls.__module__.removeprefix('mmpretrain.models.').split('.')[0]
        if room in ('heads', 'necks', 'retrievers') or (
            room == 'selfsup' and issubclass(cls, BaseSelfSupervisor)
        ):
            names.add(name)
    return names


def types_in(config):
    """Names of all classes that a config builds."""
    if isinstance(config, dict):
        found = {config['type']} if isinstance(config.get('type'), str) else set()
        return found.union(*map(types_in, config.values()))
    if isinstance(config, (list, tuple)):
        return set().union(*map(types_in, config))
    return set()


def build(row, backbone, maps):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    # The momentum encoders follow a schedule of so many iterations.
    MessageHub.get_current_instance().update_info('max_iters', 10)
    config = row.model(dict(backbone, out_indices=maps))
    model = MODELS.build(dict(config, data_preprocessor=dict(PREPROCESSOR)))
    model.init_weights()
    return model


def backbone_of(model):
    return model.backbone if hasattr(model, 'backbone') else model.image_encoder[0]


def random_images(height, width):
    generator = torch.Generator().manual_seed(0)
    size = (BATCH, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def loss_of(model, row):
    """The loss of a batch, as a training step computes it."""
    model.train()
    images = random_images(48, 64)
    if row.views > 1:
        images = [images, images.flip(-1)]
    elif not isinstance(model, BaseSelfSupervisor):
        images = list(images)
    data = model.data_preprocessor(
        dict(inputs=images, data_samples=row.samples()), training=True
    )
    return model.parse_losses(model(**data, mode='loss'))[0]


def without_gradient(model, row):
    """Trains one step; names of the parameters of the backbone that take no part."""
    loss_of(model, row).backward()
    gradients = {
        name: parameter.grad
        for name, parameter in backbone_of(model).named_parameters()
    }
    present = [gradient for gradient in gradients.values() if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in present)
    assert any(gradient.abs().max() > 0 for gradient in present)
    return [name for name, gradient in gradients.items() if gradient is None]


def answers(model, images):
    """One vector per image: scores, or the projection where nothing is predicted."""
    model.eval()
    with torch.no_grad():
        if isinstance(model, BaseSelfSupervisor):
            data = model.data_preprocessor(dict(inputs=images, data_samples=[]))
            maps = model.extract_feat(data['inputs'])
            is_swav = type(model).__name__ == 'SwAV'
            output = model.neck([maps] if is_swav else maps)
            parts = [output] if isinstance(output, torch.Tensor) else output
            return torch.cat([part.flatten(1) for part in parts], dim=1)
        samples = model.test_step(dict(inputs=list(images)))
    if isinstance(samples[0], MultiTaskDataSample):
        tasks = ('first', 'second')
        return torch.stack(
            [torch.cat([s.get(task).pred_score for task in tasks]) for s in samples]
        )
    return torch.stack([sample.pred_score for sample in samples])


@functools.cache
def result(name, backbone):
    """The cells of a row of the table: what one backbone does."""
    row = ROWS[name]
    model = build(row, BACKBONES[backbone], row.maps)
    missing = without_gradient(model, row)
    images = random_images(*ODD_SIZE)
    together = answers(model, images)
    assert together.isfinite().all()
    alone = torch.cat([answers(model, image[None]) for image in images[:2]])
    difference = (together[:2] - alone).abs().max().item()
    return dict(
        train=f'yes, but {len(missing)} parameters' if missing else 'yes',
        predict='yes' if len(together) == BATCH else 'no',
        alone='yes' if difference < 1e-4 else f'no, {difference:.1e} apart',
    )


def table_of_rows():
    lines = ['| part | maps | train | predict at 65x97 | batch = single | ResNet-18 |']
    lines.append('|---|---|---|---|---|---|')
    for name, row in ROWS.items():
        maps = 'all' if row.four_maps is None else f'one; else `{_name(row)}`'
        cells = result(name, 'MDEQ')
        control = result(name, 'ResNet-18')
        same = 'the same' if control == cells else ', '.join(control.values())
        lines.append(f'| `{name}` | {maps} | {" | ".join(cells.values())} | {same} |')
    return '\n'.join(lines)


def _name(row):
    return row.four_maps.__name__


def table_of_refusals():
    lines = ['| part | error, with ResNet-18 too | why |', '|---|---|---|']
    for name, refusal in REFUSALS.items():
        error = refusal.error.__name__
        error += f': {refusal.message}' if refusal.message else ''
        lines.append(f'| `{name}` | {error} | {refusal.reason} |')
    for reason, names in NOT_FOR_MAPS.items():
        listed = ', '.join(f'`{name}`' for name in sorted(names))
        lines += ['', *textwrap.wrap(f'{reason}: {listed}.', 120)]
    return '\n'.join(lines)


TABLES = dict(rows=table_of_rows, refusals=table_of_refusals)


def block(name):
    """The lines of the page that hold a table."""
    return f'<!-- {name} -->\n\n{TABLES[name]()}\n\n<!-- end of {name} -->'


def main():
    MMLogger.get_current_instance().setLevel('ERROR')
    page = PAGE.read_text()
    for name in TABLES:
        pattern = re.compile(rf'<!-- {name} -->.*<!-- end of {name} -->', re.DOTALL)
        text = block(name)
        page = pattern.sub(lambda _, text=text: text, page)
    PAGE.write_text(page)


if __name__ == '__main__':
    main()
