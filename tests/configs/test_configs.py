"""Every config loads, has the size it says, and trains."""

import copy
import functools
import inspect
import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from modelindex.load_model_index import load as load_model_index

from mdeq_mm.deq import Equilibrium
from mdeq_mm.models import MDEQ

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for task in ('classification', 'detection', 'segmentation', 'selfsup')
    for path in (CONFIGS / task).glob('*.py')
)
# MMDetection is optional, and the configs of detectors inherit from its own.
DETECTORS = [name for name in NAMES if name.startswith('detection/')]
NEEDS_MMDET = pytest.mark.skipif(
    find_spec('mmdet') is None, reason='MMDetection is not installed'
)
PARAMS = [
    pytest.param(name, marks=NEEDS_MMDET if name in DETECTORS else ()) for name in NAMES
]
# The others are trained in test_selfsup.py.
SUPERVISED = [name for name in NAMES if not name.startswith('selfsup')]
# As built from the official configs; the heads of the segmentors have no bias in front
# of their batch norm, which would be one parameter a channel.
OFFICIAL_PARAMETERS = {
    'classification/mdeq-tiny_2xb64_cifar10.py': 158_890,
    'classification/mdeq-tiny-2020_2xb64_cifar10.py': 158_986,
    'classification/mdeq-large_4xb32_cifar10.py': 11_097_438,
    'classification/mdeq-large-2020_4xb32_cifar10.py': 11_098_398,
    'classification/mdeq-large-jr_1xb96_cifar10.py': 11_097_438,
    'classification/mdeq-small_4xb32_in1k.py': 16_808_936,
    'classification/mdeq-small-2020_4xb32_in1k.py': 16_808_936,
    'classification/mdeq-small-jr_4xb32_in1k.py': 18_613_496,
    'classification/mdeq-large_4xb28_in1k.py': 67_063_624,
    'classification/mdeq-large-2020_4xb28_in1k.py': 90_463_280,
    'classification/mdeq-large-jr_4xb28_in1k.py': 67_061_224,
    'classification/mdeq-xl_8xb24_in1k.py': 90_463_280,
    'classification/mdeq-xl-2020_8xb24_in1k.py': 90_463_280,
    'segmentation/fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py': 8_968_467 - 480,
    **{
        f'segmentation/fcn_mdeq-large{year}_4xb3-500e_cityscapes-512x1024.py': (
            55_955_859 - 1200
        )
        for year in ('', '-2020')
    },
    **{
        f'segmentation/fcn_mdeq-xl{year}_8xb2-500e_cityscapes-768x1024.py': (
            79_551_755 - 1320
        )
        for year in ('', '-2020')
    },
}
# Parameters of the equilibrium layer alone.
OFFICIAL_LAYER_PARAMETERS = {
    'classification/mdeq-tiny_2xb64_cifar10.py': 111_696,
    'classification/mdeq-large_4xb32_cifar10.py': 8_715_232,
    'classification/mdeq-large-jr_1xb96_cifar10.py': 8_715_232,
    'classification/mdeq-small_4xb32_in1k.py': 8_716_192,
    'classification/mdeq-small-jr_4xb32_in1k.py': 8_715_232,
    'classification/mdeq-large_4xb28_in1k.py': 54_422_800,
    'classification/mdeq-large-jr_4xb28_in1k.py': 54_420_400,
    'classification/mdeq-xl_8xb24_in1k.py': 77_699_952,
    'segmentation/fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py': 8_716_192,
    'segmentation/fcn_mdeq-large_4xb3-500e_cityscapes-512x1024.py': 54_422_800,
    'segmentation/fcn_mdeq-xl_8xb2-500e_cityscapes-768x1024.py': 77_699_952,
}
N_IMAGES = 4
METRICS = dict(mmdet='coco/bbox_mAP', mmpretrain='accuracy/top1', mmseg='mIoU')
# Backbones of ours; the others are stock ones, for comparison.
BACKBONES = ('MDEQ', 'DEQViT')
RUNNER_ARGUMENTS = set(inspect.signature(Runner).parameters)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize('name', OFFICIAL_PARAMETERS)
@pytest.mark.slow
def test_size_is_the_official_one(build_meta, name):
    _, model = build_meta(name)
    assert count(model) == OFFICIAL_PARAMETERS[name]
    if name in OFFICIAL_LAYER_PARAMETERS:
        layer = model.backbone.equilibrium
        assert count(layer) == OFFICIAL_LAYER_PARAMETERS[name]


@pytest.fixture(scope='module')
def entries(root):
    """Models of the index by config."""
    entries = {}
    for line in yaml.safe_load((root / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((root / line).read_text())['Models']:
            assert model['Config'] not in entries
            entries[model['Config']] = model
    return entries


class TestIndex:
    def test_is_valid(self, root, entries):
        index = load_model_index(str(root / 'model-index.yml'))
        index.build_models_with_collections()
        index.check()
        assert len(index.models) == len(entries)
        for model in index.models:
            assert model.full_model.metadata.data['Architecture']

    def test_holds_every_config(self, entries):
        assert set(entries) == {f'configs/{name}' for name in NAMES}

    @pytest.mark.parametrize('name', PARAMS)
    def test_entry(self, root, entries, build_meta, name):
        entry = entries[f'configs/{name}']
        cfg, model = build_meta(name)
        assert entry['Name'] == Path(name).stem
        assert entry['Metadata']['Parameters'] == count(model)
        batch_size = cfg.auto_scale_lr.base_batch_size
        assert entry['Metadata']['Batch Size'] == batch_size

    @pytest.mark.parametrize('name', PARAMS)
    def test_row_of_the_readme(self, build_meta, name):
        readme = (CONFIGS / name).parent / 'README.md'
        (row,) = (
            line
            for line in readme.read_text().splitlines()
            if f']({Path(name).name})' in line and line.startswith('|')
        )
        assert f'| {count(build_meta(name)[1]):,} |' in row


@functools.cache
def n_levels(path):
    bases = Config._get_base_files(path)
    paths = (Config._get_cfg_path(base, path)[0] for base in bases)
    return max((1 + n_levels(base) for base in paths), default=0)


@pytest.mark.parametrize('name', PARAMS)
def test_inherits_at_most_three_deep(name):
    assert 1 <= n_levels(str(CONFIGS / name)) <= 3


class TestHooks:
    """What ``_base_/mdeq_runtime.py`` holds, each recipe has under the same names."""

    @pytest.fixture
    def runtime(self):
        return Config.fromfile(CONFIGS / '_base_' / 'mdeq_runtime.py')

    @pytest.mark.parametrize('name', PARAMS)
    def test_every_recipe_takes_them_over(self, runtime, shared_config, name):
        cfg = shared_config(name)
        assert 'custom_hooks' not in cfg
        if cfg.model.backbone.type not in BACKBONES:
            types = {hook.type for hook in cfg.default_hooks.values()}
            assert not types & {hook.type for hook in runtime.mdeq_hooks.values()}
            return
        assert cfg.custom_imports == runtime.custom_imports
        for key, hook in runtime.mdeq_hooks.items():
            assert cfg.default_hooks[key].type == hook.type
        # The hooks of the toolbox are still there.
        assert {'timer', 'logger', 'checkpoint'} <= set(cfg.default_hooks)

    def test_no_other_config_names_them(self, runtime):
        for hook in runtime.mdeq_hooks.values():
            files = [p for p in CONFIGS.rglob('*.py') if hook.type in p.read_text()]
            assert files == [CONFIGS / '_base_' / 'mdeq_runtime.py']

    def test_a_variant_changes_one_by_its_name(self, tmp_path):
        base = CONFIGS / 'classification/mdeq-large-jr_1xb96_cifar10.py'
        variant = tmp_path / 'variant.py'
        variant.write_text(
            f"""_base_ = [{str(base)!r}]
default_hooks = dict(
    equilibrium=dict(pretrain_iters=5), jacobian=dict(weight=2.0), random_state=None
)
"""
        )
        before = Config.fromfile(base).default_hooks
        after = Config.fromfile(variant).default_hooks
        assert after.equilibrium == dict(before.equilibrium, pretrain_iters=5)
        assert after.jacobian == dict(before.jacobian, weight=2.0)
        assert after.random_state is None  # mmengine leaves out a hook that is None
        assert after.logger == before.logger

    def test_an_option_on_the_command_line(self):
        cfg = Config.fromfile(CONFIGS / FAMILIES[0])
        cfg.merge_from_dict({'default_hooks.equilibrium.pretrain_iters': 6})
        assert cfg.default_hooks.equilibrium == dict(
            type='ImplicitGradientHook', pretrain_iters=6
        )


def shrink_pipeline(pipeline, divisor):
    def divide(value):
        if isinstance(value, int):
            return value // divisor
        return type(value)(divide(entry) for entry in value)

    for transform in pipeline:
        for key in ('scale', 'scales', 'crop_size'):
            if key in transform:
                transform[key] = divide(transform[key])


def write_images(folder, suffix, shape, n_values=256):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(N_IMAGES):
        image = np.random.randint(0, n_values, shape, dtype=np.uint8)
        cv2.imwrite(str(folder / f'{index}{suffix}'), image)


def fake_classes(loader, root):
    """Two folders of images instead of the data set, with the same transforms."""
    dataset = loader.dataset
    stock = dict(CIFAR10=(32, 32, 3), ImageNet=(72, 96, 3))
    for label in ('0', '1'):
        folder = root / 'images' / label
        write_images(folder, '.png', stock.get(dataset.type, (8, 8, 3)))
    if dataset.type == 'CIFAR10':
        dataset.pipeline.insert(0, dict(type='LoadImageFromFile'))
    if dataset.type == 'ImageNet':
        shrink_pipeline(dataset.pipeline, 4)
    loader.dataset = dict(
        type='CustomDataset',
        data_root=str(root / 'images'),
        pipeline=dataset.pipeline,
        indices=N_IMAGES,
    )


# Of images, where the data sets of MMSegmentation give it and no config.
STOCK_SUFFIXES = dict(CityscapesDataset='_leftImg8bit.png', ADE20KDataset='.jpg')


def fake_scenes(loader, root, crop_size):
    """Files in the folders of the data set, so much smaller that crops are 32 high."""
    dataset = loader.dataset
    divisor = crop_size[0] // 32
    is_cityscapes = dataset.type == 'CityscapesDataset'
    suffix = dataset.get('img_suffix', STOCK_SUFFIXES.get(dataset.type))
    label_suffix = '_gtFine_labelTrainIds.png' if is_cityscapes else '.png'
    # Before shrinking, images are of the size that the pipelines are written for.
    size = (1024, 2048) if is_cityscapes else crop_size
    size = tuple(side // divisor for side in size)
    shrink_pipeline(dataset.pipeline, divisor)
    write_images(root / dataset.data_prefix.img_path, suffix, (*size, 3))
    folder = root / dataset.data_prefix.seg_map_path
    classes = dataset.get('metainfo', {}).get('classes', range(19))
    write_images(folder, label_suffix, size, n_values=len(classes))
    dataset.data_root = str(root)


def narrow_heads(heads, narrower):
    """Makes heads narrow, and lets them read branches of the widths ``narrower``."""
    for head in heads if isinstance(heads, list) else [heads]:
        widths = head.in_channels
        if isinstance(widths, int):
            head.in_channels = narrower[widths]
        else:
            head.in_channels = [narrower[width] for width in widths]
        # The official head is as wide as what it reads.
        is_official = head.channels == np.sum(widths)
        head.channels = np.sum(head.in_channels).item() if is_official else 32


def fake_coco(loader, root, evaluator):
    """Images with two boxes each, about 96 pixels wide."""
    dataset = loader.dataset
    (scale,) = (part.scale for part in dataset.pipeline if part.type == 'Resize')
    divisor = scale[0] // 96
    shrink_pipeline(dataset.pipeline, divisor)
    size = (scale[1] // divisor, scale[0] // divisor)
    folder = root / dataset.data_prefix.img
    write_images(folder, '.png', (*size, 3))
    metainfo = dataset.get('metainfo') or DATASETS.get('mmdet.CocoDataset').METAINFO
    boxes = [[2, 3, 20, 16], [20, 10, 18, 24]]
    content = dict(
        images=[
            dict(id=index, file_name=f'{index}.png', height=size[0], width=size[1])
            for index in range(N_IMAGES)
        ],
        annotations=[
            dict(
                id=1 + 2 * index + number,
                image_id=index,
                category_id=1 + number,
                bbox=box,
                area=box[2] * box[3],
                iscrowd=0,
            )
            for index in range(N_IMAGES)
            for number, box in enumerate(boxes)
        ],
        categories=[
            dict(id=1 + index, name=name)
            for index, name in enumerate(metainfo['classes'])
        ],
    )
    path = root / dataset.ann_file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    dataset.data_root = str(root)
    evaluator.ann_file = str(path)


def shrink_model(model):
    """Makes a backbone of ours narrow and its budgets small; nothing else changes."""
    backbone = model.backbone
    if backbone.type not in BACKBONES:
        return
    # Where it names none, it has the default.
    backbone.setdefault('forward_solver', dict(type='BroydenSolver'))
    adjoint = dict(type='BroydenSolver')
    backbone.setdefault('gradient', dict(type='ImplicitGradient', solver=adjoint))
    backbone.forward_solver.max_evals = 4
    if backbone.gradient.type == 'ImplicitGradient':
        backbone.gradient.solver.max_evals = 3
    if backbone.type == 'DEQViT':
        backbone.arch.update(embed_dims=16, feedforward_channels=16)
        model.get('head', model.get('decode_head')).in_channels = 16
        return
    # Only the fine-tuning test has the weights this loads.
    backbone.init_cfg = None
    arch = backbone.arch
    arch = copy.deepcopy(MDEQ.arch_settings[arch] if isinstance(arch, str) else arch)
    widths = arch['channels']
    if max(widths) < 100:  # small enough
        return
    channels = [8 * width // widths[0] for width in widths]
    backbone.arch = dict(arch, channels=channels)
    if isinstance(model.get('neck'), list):
        fuse = model.neck[0]
        fuse.in_channels = channels
        fuse.head_channels = [
            2 * width // fuse.head_channels[0] for width in fuse.head_channels
        ]
        fuse.out_channels = model.head.in_channels = 16
    elif 'neck' in model:
        model.neck.in_channels = channels
    for name in {'decode_head', 'auxiliary_head'} & set(model):
        narrow_heads(model[name], dict(zip(widths, channels)))


def reduced(name, work_dir):
    """A config whose models and images are small and whose run is two iterations."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'ERROR'
    # Runners of one second would share a name, and with it the log.
    cfg.experiment_name = f'reduced {name}'
    shrink_model(cfg.model)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        # The pipeline of validation may be that of training.
        loader.dataset.pipeline = copy.deepcopy(loader.dataset.pipeline)
        if cfg.default_scope == 'mmpretrain':
            fake_classes(loader, work_dir / 'data')
        elif cfg.default_scope == 'mmdet':
            fake_coco(loader, work_dir / 'data', cfg.val_evaluator)
        else:
            crop_size = cfg.model.data_preprocessor.size
            fake_scenes(loader, work_dir / 'data', crop_size)
    if cfg.default_scope == 'mmseg':
        divisor = crop_size[0] // 32
        cfg.model.data_preprocessor.size = tuple(side // divisor for side in crop_size)
    if cfg.default_scope == 'mmdet':
        # A fresh model finds nothing above the threshold, and MMDetection then reports
        # no metric.
        test_cfg = cfg.model.test_cfg
        test_cfg.get('rcnn', test_cfg).score_thr = 0.0
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    if cfg.train_cfg.get('type') == 'IterBasedTrainLoop':
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.logger.interval = 1
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    equilibrium = cfg.default_hooks.get('equilibrium', {})
    if equilibrium.get('pretrain_iters'):
        equilibrium.pretrain_iters = 1
    if 'jacobian' in cfg.default_hooks:
        cfg.default_hooks.jacobian.freq = 1.0
    return cfg


# One of each family in the fast tests: architecture, data set and kind of gradient.
FAMILIES = (
    'classification/mdeq-tiny_1xb64_digits.py',
    'classification/mdeq-large-jr_1xb96_cifar10.py',
    'classification/mdeq-small-phantom_2xb64_in1k.py',
    'detection/retinanet_mdeq-micro_fpn_1xb4-3e_digit-detection-96x96.py',
    'classification/deq-vit-micro_1xb64-600_digits.py',
    'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py',
    'segmentation/fcn_deq-vit-micro_1xb8-1200_digit-scenes-64x64.py',
    'segmentation/fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py',
)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(
            name,
            marks=[
                *([NEEDS_MMDET] if name in DETECTORS else []),
                pytest.mark.versions if name in FAMILIES else pytest.mark.slow,
            ],
        )
        for name in SUPERVISED
    ],
)
def test_trains_and_evaluates(name, tmp_path):
    """One unrolled iteration, where there is one, and one at the equilibrium."""
    cfg = reduced(name, tmp_path)
    # As Runner.from_cfg does, without keeping the config: formatting its text five
    # times would take longer than the training.
    runner = Runner(**{key: cfg[key] for key in RUNNER_ARGUMENTS & set(cfg)})
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    losses = scalars['train/loss'].data[0]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    if cfg.model.backbone.type in BACKBONES:
        assert isinstance(runner.model.backbone.equilibrium.mode, Equilibrium)
        assert 'train/forward_residual' in scalars
    else:
        assert 'equilibrium' not in cfg.default_hooks
    assert ('train/loss_jacobian' in scalars) == ('-jr_' in name)
    metric = METRICS[cfg.default_scope]
    assert 0 <= scalars[f'val/{metric}'].current() <= 100


SEGMENTORS = [name for name in NAMES if 'cityscapes' in name]


class TestFineTuning:
    def reduced_model(self, name):
        cfg = Config.fromfile(CONFIGS / name)
        init_cfg = cfg.model.backbone.get('init_cfg')
        shrink_model(cfg.model)
        init_default_scope(cfg.default_scope)
        return cfg.model, init_cfg

    @pytest.mark.parametrize(
        'name',
        [
            pytest.param(name, marks=() if '/fcn_' in name else pytest.mark.slow)
            for name in SEGMENTORS
        ],
    )
    def test_backbone_starts_from_the_classifier(self, build_meta, tmp_path, name):
        segmentor, init_cfg = self.reduced_model(name)
        stem = Path(init_cfg.checkpoint).stem
        classifier_name = f'classification/{stem}.py'
        full_size = build_meta(classifier_name)[1].backbone
        expected_keys = build_meta(name)[1].backbone.state_dict().keys()
        assert full_size.state_dict().keys() == expected_keys
        assert full_size.channels == build_meta(name)[1].backbone.channels

        classifier = MODELS.build(self.reduced_model(classifier_name)[0])
        for tensor in classifier.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        path = tmp_path / 'classifier.pth'
        torch.save(dict(state_dict=classifier.state_dict()), path)
        init_default_scope('mmseg')
        segmentor.backbone.init_cfg = dict(init_cfg, checkpoint=str(path))
        model = MODELS.build(segmentor)
        model.init_weights()
        expected = classifier.backbone.state_dict()
        for key, tensor in model.backbone.state_dict().items():
            assert torch.equal(tensor, expected[key]), key

    def test_without_the_file(self, tmp_path):
        segmentor, init_cfg = self.reduced_model(FAMILIES[-1])
        path = str(tmp_path / 'absent.pth')
        segmentor.backbone.init_cfg = dict(init_cfg, checkpoint=path)
        with pytest.raises(FileNotFoundError, match=r'absent.pth can not be found'):
            MODELS.build(segmentor).init_weights()

    def test_from_scratch_as_in_the_paper(self):
        """With ``init_cfg=None``, as ``shrink_model`` sets it."""
        segmentor, _ = self.reduced_model(FAMILIES[-1])
        model = MODELS.build(segmentor)
        model.init_weights()
        weight = model.backbone.stem[1].conv.weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.1)
