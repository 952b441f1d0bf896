"""The settings in effect, against a table of those of the official recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, HOOKS, METRICS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from mdeq_mm.deq import (
    BroydenSolver,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    Unrolled,
    VariationalDropout,
)
from mdeq_mm.models import ClassWeightedCrossEntropyLoss

# fmt: off
CLASS_WEIGHT = [
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
]
# fmt: on
# Not official: schedules of this project.
OWN = {
    'mdeq-tiny_1xb64-10e_cifar10',
    'mdeq-tiny_1xb64-1e_cifar10',
    'mdeq-tiny-s2_1xb64-5e_cifar10',
    'mdeq-tiny-s2-contraction_1xb64-10e_cifar10',
    'mdeq-tiny-s2-unrolled_1xb64-10e_cifar10',
}
N_IMAGES = dict(cifar10=50_000, in1k=1_281_167, cityscapes=2_975)
SMALL = (32, 64, 128, 256)
LARGE = (80, 160, 320, 640)
XL = (88, 176, 352, 704)


@dataclass(frozen=True)
class Recipe:
    name: str
    channels: tuple
    num_layers: int
    pretrain_iters: int
    limits: tuple  # forward and backward; no backward for phantom gradients
    batch: tuple  # GPUs, images a GPU
    epochs: int
    lr: float
    weight_decay: float
    head_channels: Optional[tuple] = None
    final: Optional[int] = None
    expansion: int = 5
    affine: bool = True
    dropout: float = 0.0
    optimizer: str = 'SGD'
    nesterov: bool = False
    stop_mode: str = 'abs'
    solver: type = BroydenSolver
    phantom: Optional[tuple] = None  # steps, damping
    regularization: Optional[dict] = None
    crop_size: Optional[tuple] = None

    @property
    def data(self):
        return self.name.split('_')[-1].split('-')[0]

    @property
    def path(self):
        task = 'segmentation' if self.data == 'cityscapes' else 'classification'
        return f'{task}/{self.name}.py'

    @property
    def iters_per_epoch(self):
        batches = N_IMAGES[self.data] / math.prod(self.batch)
        # MMPretrain trains on the last, smaller batch too.
        return math.floor(batches) if self.data == 'cityscapes' else math.ceil(batches)


def tiny(name, **settings):
    return Recipe(
        f'mdeq-tiny{name}_cifar10',
        **dict(
            dict(
                channels=(24, 24),
                head_channels=(8, 16),
                final=200,
                num_layers=10,
                pretrain_iters=3000,
                limits=(18, 20),
                dropout=0.25,
                batch=(2, 64),
                epochs=50,
                optimizer='Adam',
                lr=1e-3,
                weight_decay=2.5e-6,
                affine=False,
                stop_mode='rel',
            ),
            **settings,
        ),
    )


def cifar_large(name, **settings):
    return Recipe(
        f'mdeq-large{name}_cifar10',
        **dict(
            dict(
                channels=SMALL,
                head_channels=(14, 28, 56, 112),
                final=1680,
                num_layers=10,
                pretrain_iters=20_000,
                limits=(18, 20),
                dropout=0.3,
                batch=(4, 32),
                epochs=220,
                optimizer='Adam',
                lr=1e-3,
                weight_decay=0.0,
                affine=False,
                stop_mode='rel',
            ),
            **settings,
        ),
    )


def imagenet(name, **settings):
    return Recipe(
        f'mdeq-{name}_in1k',
        **dict(
            dict(
                channels=SMALL,
                head_channels=(24, 48, 96, 192),
                final=2048,
                num_layers=5,
                pretrain_iters=510_000,
                limits=(26, 27),
                batch=(4, 32),
                epochs=100,
                lr=0.05,
                weight_decay=5e-5,
                nesterov=True,
            ),
            **settings,
        ),
    )


def imagenet_wide(name, channels, **settings):
    head_channels = (32, 64, 128, 256)
    return imagenet(
        name, channels=channels, head_channels=head_channels, num_layers=4, **settings
    )


def cityscapes(size, channels, **settings):
    defaults = dict(
        num_layers=3,
        pretrain_iters=60_000,
        limits=(27, 30),
        batch=(4, 3),
        epochs=500,
        lr=0.01,
        crop_size=(512, 1024),
    )
    settings = {**defaults, **settings}
    gpus, images = settings['batch']
    height, width = settings['crop_size']
    return Recipe(
        f'fcn_mdeq-{size}_{gpus}xb{images}-500e_cityscapes-{height}x{width}',
        channels=channels,
        **settings,
    )


SGD = dict(optimizer='SGD', lr=0.1, weight_decay=1e-4, pretrain_iters=0)
REGULARIZED = dict(
    freq=0.08, incremental=50_000, pretrain_weight=0.03, max_evals_delta=2
)
XL_CITYSCAPES = dict(
    expansion=6,
    dropout=0.04,
    pretrain_iters=40_000,
    batch=(8, 2),
    crop_size=(768, 1024),
    weight_decay=3e-4,
)
RECIPES = [
    tiny('_2xb64'),
    tiny('-2020_2xb64', limits=(22, 24), affine=True),
    tiny('-phantom_1xb128', **SGD, limits=(22,), phantom=(5, 0.5), batch=(1, 128)),
    cifar_large('_4xb32'),
    cifar_large('-2020_4xb32', affine=True),
    cifar_large(
        '-jr_1xb96',
        num_layers=8,
        dropout=0.22,
        limits=(8, 7),
        pretrain_iters=16_000,
        batch=(1, 96),
        regularization=dict(weight=0.4, freq=0.02, stop_epoch=90, max_evals_delta=2),
    ),
    cifar_large('-phantom_2xb64', **SGD, limits=(18,), phantom=(5, 0.7), batch=(2, 64)),
    imagenet('small_4xb32'),
    imagenet('small-2020_4xb32', pretrain_iters=500_000),
    imagenet(
        'small-jr_4xb32',
        head_channels=(28, 56, 112, 224),
        affine=False,
        dropout=0.02,
        limits=(14, 14),
        lr=0.04,
        weight_decay=2e-5,
        regularization=dict(REGULARIZED, weight=2.5),
    ),
    imagenet(
        'small-phantom_2xb64',
        limits=(26,),
        solver=PicardSolver,
        # The damping is not published; this is the default.
        phantom=(5, 0.5),
        pretrain_iters=0,
        batch=(2, 64),
    ),
    imagenet_wide('large_4xb28', LARGE, batch=(4, 28), weight_decay=1e-4),
    imagenet_wide(
        'large-2020_4xb28',
        XL,
        expansion=6,
        limits=(24, 24),
        pretrain_iters=550_000,
        batch=(4, 28),
        weight_decay=1e-4,
    ),
    imagenet_wide(
        'large-jr_4xb28',
        LARGE,
        affine=False,
        limits=(14, 14),
        batch=(4, 28),
        weight_decay=1e-4,
        regularization=dict(REGULARIZED, weight=3.0),
    ),
    imagenet_wide('xl_8xb24', XL, expansion=6, batch=(8, 24), weight_decay=7e-5),
    imagenet_wide(
        'xl-2020_8xb24',
        XL,
        expansion=6,
        limits=(27, 27),
        pretrain_iters=400_000,
        batch=(8, 24),
        weight_decay=7e-5,
    ),
    cityscapes('small', SMALL, dropout=0.05, weight_decay=2e-4),
    cityscapes('large', LARGE, dropout=0.03, weight_decay=3e-4),
    cityscapes(
        'large-2020',
        LARGE,
        dropout=0.03,
        weight_decay=3e-4,
        pretrain_iters=32_000,
        limits=(26, 26),
    ),
    cityscapes('xl', XL, **XL_CITYSCAPES),
    cityscapes('xl-2020', XL, **XL_CITYSCAPES, limits=(26, 26)),
]


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request):
    return request.param


@pytest.fixture
def cfg(recipe, build_meta):
    return build_meta(recipe.path)[0]


@pytest.fixture
def model(recipe, build_meta):
    return build_meta(recipe.path)[1]


def test_none_is_forgotten(root):
    """The official recipes are those with the official heads."""
    names = {
        path.stem
        for data in N_IMAGES
        for pattern in ('classification/mdeq', 'segmentation/fcn_mdeq')
        for path in (root / 'configs').glob(f'{pattern}*_{data}*.py')
    }
    assert names - OWN == {recipe.name for recipe in RECIPES}


def test_model(recipe, model):
    backbone = model.backbone
    cell = backbone.equilibrium.cell
    assert backbone.channels == recipe.channels
    assert backbone.equilibrium.unrolled == Unrolled(recipe.num_layers)
    for blocks, channels in zip(cell.branches, recipe.channels):
        (block,) = blocks
        assert block.conv1.out_channels == recipe.expansion * channels
        assert block.norm1.num_groups == 8
        assert block.dropout.p == recipe.dropout
    assert sum(isinstance(m, VariationalDropout) for m in cell.modules()) == len(
        recipe.channels
    )
    for post_fusion in cell.post_fusion:
        norm = post_fusion[-1]
        assert norm.num_groups == 4
        assert norm.affine == recipe.affine
    momentum = 0.01 if recipe.data == 'cityscapes' else 0.1
    batch_norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert {norm.momentum for norm in batch_norms} == {momentum}


def test_head(recipe, cfg, model):
    if recipe.data == 'cityscapes':
        head = model.decode_head
        assert type(head.loss_decode) is ClassWeightedCrossEntropyLoss
        assert cfg.model.decode_head.loss_decode.class_weight == CLASS_WEIGHT
        assert isinstance(head.convs[0].norm, nn.SyncBatchNorm)
        assert head.channels == sum(recipe.channels)
        assert head.num_classes == 19
        assert head.align_corners
        assert head.dropout is None
    else:
        fuse = model.neck[0]
        widths = tuple(bottleneck.conv1[0].out_channels for bottleneck in fuse.increase)
        assert widths == recipe.head_channels
        assert fuse.final[0].out_channels == recipe.final
        assert model.head.num_classes == (10 if recipe.data == 'cifar10' else 1000)


def test_solver_and_gradient(recipe, model):
    mode = model.backbone.equilibrium.configured
    assert type(mode.solver) is recipe.solver
    solvers, gradient = [mode.solver], mode.gradient
    if recipe.phantom is None:
        assert type(gradient) is ImplicitGradient
        assert type(gradient.solver) is BroydenSolver
        solvers.append(gradient.solver)
    else:
        assert type(gradient) is PhantomGradient
        assert (gradient.steps, gradient.damping) == recipe.phantom
    assert tuple(solver.max_evals for solver in solvers) == recipe.limits
    for solver in solvers:
        assert solver.tol == 1e-3
        assert solver.stop_mode == recipe.stop_mode
        if type(solver) is PicardSolver:
            assert solver.damping == 1


def test_hooks(recipe, cfg):
    assert 'custom_hooks' not in cfg
    hooks = cfg.default_hooks
    expected = dict(type='ImplicitGradientHook', pretrain_iters=recipe.pretrain_iters)
    assert hooks.equilibrium == expected
    assert hooks.random_state == dict(type='RandomStateHook')
    assert hooks.checkpoint.type == 'AtomicCheckpointHook'
    for name in ('equilibrium', 'random_state'):
        assert HOOKS.build(hooks[name])
    stock = {'timer', 'logger', 'param_scheduler', 'checkpoint', 'sampler_seed'}
    ours = set(hooks) - stock - {'visualization'}
    assert ours - {'jacobian'} == {'equilibrium', 'random_state'}
    regularization = 'jacobian' in hooks and HOOKS.build(hooks.jacobian)
    if recipe.regularization is None:
        assert not regularization
        return
    expected = dict(
        num_vectors=2, incremental=None, stop_epoch=None, pretrain_weight=0.0
    )
    for key, value in {**expected, **recipe.regularization}.items():
        assert getattr(regularization, key) == value, key


@DATASETS.register_module(force=True)
class AsManyImages(Dataset):
    """As many images as a data set has, and none of them."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        raise AssertionError('nothing is loaded')


@METRICS.register_module(force=True)
class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        raise AssertionError('nothing is evaluated')

    compute_metrics = process


def test_schedule(recipe, cfg, tmp_path):
    """Optimiser and learning rates, from a runner that is ready to train."""
    gpus, images = recipe.batch
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    loader = dict(
        # One process loads what all of them would.
        batch_size=gpus * images,
        num_workers=0,
        dataset=dict(type='AsManyImages', length=N_IMAGES[recipe.data]),
        sampler=cfg.train_dataloader.sampler,
    )
    runner = Runner(
        model=nn.Linear(1, 1),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_scope=cfg.default_scope,
        log_level='ERROR',
        experiment_name=f'schedule of {recipe.name}',
    )
    n_iters = recipe.epochs * recipe.iters_per_epoch
    loop = runner.build_train_loop(cfg.train_cfg)
    assert loop.max_iters == n_iters

    runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    optimizer = runner.optim_wrapper.optimizer
    assert type(optimizer).__name__ == recipe.optimizer
    (group,) = optimizer.param_groups
    assert group['weight_decay'] == recipe.weight_decay
    if recipe.optimizer == 'SGD':
        assert group['momentum'] == 0.9
        assert group['nesterov'] == recipe.nesterov

    runner._train_loop = loop
    (scheduler,) = runner.build_param_scheduler(cfg.param_scheduler)
    assert not scheduler.by_epoch
    # The long ones are followed on their first iterations alone.
    last = n_iters if n_iters < 50_000 else 2000
    assert scheduler.T_max == n_iters
    assert scheduler.eta_min == 1e-6
    for iteration in range(last + 1):
        if iteration in (0, 1, 1000, last // 2, last):
            share = (1 + math.cos(math.pi * iteration / n_iters)) / 2
            expected = 1e-6 + (recipe.lr - 1e-6) * share
            # The scheduler rounds in every step.
            tolerance = 1e-7 * recipe.lr
            assert group['lr'] == pytest.approx(expected, rel=1e-6, abs=tolerance)
        scheduler.step()


def by_type(pipeline):
    return {transform.type: transform for transform in pipeline}


class TestData:
    def test_normalisation(self, recipe, cfg):
        # MMPretrain keeps it outside the model.
        settings = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
        if recipe.data == 'cifar10':
            mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        else:
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        for name, expected in (('mean', mean), ('std', std)):
            actual = [value / 255 for value in settings[name]]
            assert actual == pytest.approx(expected, rel=1e-6)

    def test_augmentation(self, recipe, cfg):
        pipeline = by_type(cfg.train_dataloader.dataset.pipeline)
        for name in ('LoadImageFromFile', 'LoadAnnotations'):
            pipeline.pop(name, None)
        assert pipeline.pop(
            'PackSegInputs' if recipe.data == 'cityscapes' else 'PackInputs'
        )
        if recipe.name.startswith('mdeq-tiny'):
            assert not pipeline
            return
        flip = pipeline.pop('RandomFlip')
        assert flip.prob == 0.5
        assert flip.get('direction', 'horizontal') == 'horizontal'
        if recipe.data == 'in1k':
            crop = pipeline.pop('RandomResizedCrop')
            assert crop == dict(type='RandomResizedCrop', scale=224)
        else:
            crop = pipeline.pop('RandomCrop')
        if recipe.data == 'cifar10':
            assert crop == dict(type='RandomCrop', crop_size=32, padding=4)
        if recipe.data == 'cityscapes':
            assert crop == dict(type='RandomCrop', crop_size=recipe.crop_size)
            assert cfg.model.data_preprocessor.size == recipe.crop_size
            resize = pipeline.pop('RandomChoiceResize')
            assert resize.keep_ratio
            assert resize.scales == [
                (int(2048 * scale + 0.5), int(1024 * scale + 0.5))
                for scale in (0.5 + 0.1 * step for step in range(17))
            ]
        assert not pipeline

    def test_evaluation(self, recipe, cfg):
        pipeline = by_type(cfg.test_dataloader.dataset.pipeline)
        if recipe.data == 'cifar10':
            assert set(pipeline) == {'PackInputs'}
        elif recipe.data == 'in1k':
            resize = pipeline['ResizeEdge']
            assert (resize.scale, resize.edge) == (256, 'short')
            assert pipeline['CenterCrop'].crop_size == 224
        else:
            # Nothing changes for images of that size.
            assert pipeline['Resize'].scale == (2048, 1024)
            assert cfg.model.test_cfg == dict(mode='whole')
            assert cfg.test_dataloader.dataset.data_prefix.img_path.endswith('/val')
