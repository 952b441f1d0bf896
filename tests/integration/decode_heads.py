"""The matrix of decode heads: stock ones behind an MDEQ, and what each of them does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Optional

import mmseg.models  # noqa: F401  registers what is built below
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmengine.utils import digit_version
from mmseg.structures import SegDataSample

from .decode_head_models import CHANNELS, HEADS, NECKS, NORM

PAGE = Path(__file__).resolve().parents[2] / 'docs/en/heads.md'
HEADER = '| head and necks | train | predict 65x97 | batch = single | note |\n'
TABLE = re.compile(re.escape(HEADER) + r'(?:\|.*\n)+')
STEPS = ('train', 'predict', 'batch')
# What stock parts raise where they cannot do something.
ERRORS = (AssertionError, AttributeError, ImportError, RuntimeError, ValueError)
# Rounding: convolutions may add up a batch in another order than one image.
TOLERANCE = 1e-4

SOLVERS = dict(
    forward_solver=dict(type='AndersonSolver', max_evals=8, tol=1e-3),
    gradient=dict(
        type='ImplicitGradient', solver=dict(type='PicardSolver', max_evals=6)
    ),
)


def mdeq(channels=CHANNELS, **settings):
    """The config of a backbone, the same in every model but for what a row asks for."""
    arch = dict(channels=channels, num_groups=4, expansion=2)
    return dict(type='MDEQ', arch=arch, **SOLVERS, **settings)


def hrnet(channels=CHANNELS):
    """A stock backbone with maps of the same sizes, as a control."""
    stages = {
        f'stage{number}': dict(
            num_modules=1,
            num_branches=number,
            block='BASIC',
            num_blocks=(1,) * number,
            num_channels=channels[:number],
        )
        for number in (2, 3, 4)
    }
    first = dict(
        num_modules=1,
        num_branches=1,
        block='BOTTLENECK',
        num_blocks=(1,),
        num_channels=(8,),
    )
    return dict(type='HRNet', norm_cfg=NORM, extra=dict(stage1=first, **stages))


@dataclass(frozen=True)
class Fault:
    """How a stock part says that it cannot do a step."""

    kind: type
    message: str  # a regular expression

    def matches(self, error: Optional[Exception]) -> bool:
        return type(error) is self.kind and bool(re.search(self.message, str(error)))


@dataclass(frozen=True)
class Row:
    """One line of the matrix.

    Args:
        name (str): What stands in the first column.
        model (dict): The model without its backbone.
        backbone (dict): Further arguments of the MDEQ.
        channels (tuple[int]): Those of the four branches.
        preprocessor (dict): Further arguments of the data preprocessor.
        trained (tuple[int]): Height and width of the images of the training step.
        predicted (tuple[int]): Those of the images that are predicted.
        faults (dict): Steps that cannot be, and how the head says so.
        needs (str): A package without which the head cannot be built.
        compiled (bool): Whether the head needs an op that mmcv-lite does not have.
        pretrained (bool): Whether the head can only be initialized from a checkpoint.
        note (str): The last column.
    """

    name: str
    model: dict
    backbone: dict = field(default_factory=dict)
    channels: tuple = CHANNELS
    preprocessor: dict = field(default_factory=dict)
    trained: tuple = (64, 96)
    predicted: tuple = (65, 97)
    faults: dict = field(default_factory=dict)
    needs: str = ''
    compiled: bool = False
    pretrained: bool = False
    note: str = ''


MISSING_OP = Fault(ImportError, 'install mmcv instead of mmcv-lite')
FAULTS = {
    'LRASPPHead': dict.fromkeys(
        ('train', 'predict'), Fault(RuntimeError, 'Output size is too small')
    ),
    'SETRMLAHead + MultiLevelNeck + MLANeck': dict(
        predict=Fault(RuntimeError, 'size of tensor a .* must match')
    ),
    'SETRMLAHead + MLANeck': dict.fromkeys(
        ('train', 'predict'), Fault(RuntimeError, 'size of tensor a .* must match')
    ),
    'DPTHead': dict(
        train=Fault(ValueError, 'expected 4D input'),
        predict=Fault(AssertionError, ''),
    ),
    'PIDHead': dict(
        train=Fault(ValueError, 'too many values to unpack'),
        predict=Fault(AttributeError, "has no attribute 'dim'"),
    ),
    'DDRHead': dict(
        train=Fault(ValueError, 'too many values to unpack'),
        predict=Fault(AttributeError, "has no attribute 'dim'"),
    ),
    'VPDDepthHead': dict(predict=Fault(RuntimeError, 'Sizes of tensors must match')),
    'SideAdapterCLIPHead': dict.fromkeys(
        ('train', 'predict'), Fault(ValueError, 'too many values to unpack')
    ),
}
# What an old torch adds. The page is of the newest versions.
OLD_FAULTS = {
    'DNLHead': dict(train=Fault(RuntimeError, 'modified by an inplace operation')),
}
IS_OLD = digit_version(torch.__version__) < digit_version('2.2')
if IS_OLD:
    FAULTS.update(OLD_FAULTS)
NOTES = {
    'DNLHead': 'torch 2.1: changes in place what backward needs',
    'LightHamHead': '`rand_init=False`: else a prediction is random',
    'LRASPPHead': 'pools 49x49: its coarsest map must be as large',
    'LRASPPHead, larger': '`downsample_times=0`: strides 1, 2 and 4',
    'Mask2FormerHead': 'needs MMDetection',
    'MaskFormerHead': 'needs MMDetection',
    'PSAHead': 'needs a compiled op: install `mmcv`, not `mmcv-lite`',
    'SETRMLAHead + MultiLevelNeck + MLANeck': 'scales maps by fixed factors',
    'SETRMLAHead + MultiLevelNeck + MLANeck, padded': '`size_divisor=32`',
    'SETRMLAHead + MultiLevelNeck + MLANeck, one branch': '`out_indices=(3,)`',
    'SETRMLAHead + MLANeck': 'adds maps, so they must have one size',
    'DPTHead': 'made for ViT: wants class tokens beside the maps',
    'PIDHead': 'made for PIDNet: wants its three branches',
    'DDRHead': 'made for DDRNet: wants its two branches',
    'VPDDepthHead': 'depth; scales maps by fixed factors',
    'VPDDepthHead, padded': '`size_divisor=32`',
    'SideAdapterCLIPHead': 'made for CLIP: wants its images and texts',
    'STDCHead': 'as auxiliary head, on the finest branch',
    'OCRHead': 'cascade, after an `FCNHead`',
    'PointHead + FPN': 'PointRend: cascade, after an `FPNHead`',
    'IterativeDecodeHead': 'K-Net, with `UPerHead`',
    'UPerHead + MultiLevelNeck': '',
    'FCNHead + JPU': 'FastFCN; `out_indices=(1, 2, 3)`',
    'FCNHead + ICNeck': '`out_indices=(0, 1, 2)`',
    'UPerHead + Feature2Pyramid': 'branches of equal width',
    'UPerHead + auxiliary heads, sliding windows': 'two `FCNHead`s; windows of 48x64',
}
ROWS = [
    Row(
        name,
        faults=FAULTS.get(name, {}),
        note=NOTES.get(name, ''),
        **settings,
    )
    for name, settings in {**HEADS, **NECKS}.items()
]


def has_full_mmcv() -> bool:
    return all(d.metadata['Name'] != 'mmcv-lite' for d in distributions())


def types_in(config: object) -> Iterator[str]:
    """Yields every ``type`` that a config names, at any depth."""
    if isinstance(config, dict):
        if isinstance(config.get('type'), str):
            yield config['type']
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from types_in(value)


@dataclass
class Outcome:
    """What a row did.

    Args:
        row (Row): The row.
        errors (dict): The error of each step that ended with one.
        without_gradient (list[str]): Parameters of the backbone that got no gradient,
            or one that is not finite.
        difference (float): The largest one between the logits of an image in a batch
            and alone, relative to the largest logit.
    """

    row: Row
    errors: dict = field(default_factory=dict)
    without_gradient: list = field(default_factory=list)
    difference: float = float('nan')

    def works(self, step: str) -> bool:
        if step in self.errors:
            return False
        if step == 'train':
            return not self.without_gradient
        return step == 'predict' or self.difference <= TOLERANCE

    def cell(self, step: str) -> str:
        """What stands in the column of a step."""
        if self.row.compiled:
            return '`mmcv`'
        if step == 'batch' and 'predict' in self.errors:
            return '-'
        if not self.works(step):
            return 'no'
        if step == 'predict' and self.row.predicted != Row.predicted:
            return 'at {}x{}'.format(*self.row.predicted)
        return 'yes'

    def line(self) -> str:
        """The line of the table."""
        cells = [self.row.name, *map(self.cell, STEPS), self.row.note]
        return f'| {" | ".join(cells)} |'.replace('  ', ' ')


def build(row: Row, backbone: Optional[dict] = None):
    """Builds the model of a row."""
    init_default_scope('mmseg')
    backbone = backbone or mdeq(row.channels, **row.backbone)
    preprocessor = dict(
        type='SegDataPreProcessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        size=row.trained,
        seg_pad_val=255,
        **row.preprocessor,
    )
    defaults = dict(
        type='EncoderDecoder',
        backbone=backbone,
        data_preprocessor=preprocessor,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    model = MODELS.build(ConfigDict(defaults, **row.model))
    (model.backbone if row.pretrained else model).init_weights()
    return model


def images_of(size: tuple) -> list:
    """Two images, of which the solver needs different numbers of evaluations."""
    noise = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    return [noise[0], noise[1] // 8]


def train(model, size: tuple) -> None:
    """Makes one step without an optimizer, from which the gradients stay."""
    samples = []
    for _ in range(2):
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, *size)))
        )
        sample.gt_depth_map = PixelData(data=1 + torch.rand(1, *size))
        sample.set_metainfo(dict(img_shape=size, ori_shape=size, pad_shape=size))
        samples.append(sample)
    data = dict(inputs=images_of(size), data_samples=samples)
    losses = model.loss(**model.data_preprocessor(data, training=True))
    loss, _ = model.parse_losses(losses)
    loss.backward()


def predict(model, images: list) -> list:
    """Returns logits, or depths, of each image."""
    size = tuple(images[0].shape[1:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size)
    samples = [SegDataSample(metainfo=meta) for _ in images]
    with torch.no_grad():
        results = model.test_step(dict(inputs=images, data_samples=samples))
    maps = []
    for result in results:
        found = 'pred_depth_map' if 'pred_depth_map' in result else 'seg_logits'
        maps.append(result.get(found).data)
        assert maps[-1].shape[1:] == size
        assert maps[-1].isfinite().all()
    return maps


def tried(row: Row, backbone: Optional[dict] = None) -> Outcome:
    """Tries every step of a row.

    Args:
        row (Row): The row.
        backbone (dict, optional): A backbone instead of the MDEQ. Defaults to None.
    """
    torch.manual_seed(0)
    outcome = Outcome(row)
    model = build(row, backbone).train()
    try:
        train(model, row.trained)
    except ERRORS as error:
        outcome.errors['train'] = error
    outcome.without_gradient = [
        name
        for name, parameter in model.backbone.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    model.eval()
    images = images_of(row.predicted)
    try:
        alone = [predict(model, [image])[0] for image in images]
    except ERRORS as error:
        outcome.errors['predict'] = error
    else:
        together = predict(model, images)
        differences = [(a - b).abs().max() for a, b in zip(alone, together)]
        largest = max(logits.abs().max() for logits in alone)
        outcome.difference = (max(differences) / largest).item()
    return outcome


def lines_of(page: str) -> dict[str, str]:
    """The lines of the matrix on a page, by their rows."""
    (table,) = TABLE.findall(page)
    lines = table.splitlines()[2:]
    return {line.split('|')[1].strip(): line for line in lines}


def write_lines(found: dict[str, str]) -> None:
    """Writes lines into the page, which keeps those of the rows that were not tried."""
    page = PAGE.read_text()
    found = {**lines_of(page), **found}
    lines = [HEADER.rstrip(), '|---|---|---|---|---|']
    lines += [found[row.name] for row in ROWS if row.name in found]
    table = ''.join(f'{line}\n' for line in lines)
    PAGE.write_text(TABLE.sub(lambda _: table, page))
