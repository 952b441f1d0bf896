"""The backbone in detectors of MMDetection, with a stock ResNet as control."""

import math
from pathlib import Path

import cv2
import pytest

from mdeq_mm.apis import build_model

from ..isolation import NO_WORKERS

pytest.importorskip('mmdet', reason='MMDetection is not installed')

import mmdet
from mmdet.apis import inference_detector, init_detector
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config

CONFIG = 'detection/retinanet_mdeq-micro_fpn_1xb4-3e_digit-detection-96x96.py'
SMALL = dict(type='PicardSolver', max_evals=6)
# Each with the channels of its four feature maps, at strides of 4, 8, 16 and 32.
BACKBONES = dict(
    MDEQ=(
        dict(
            type='MDEQ',
            arch=dict(channels=(8, 16, 24, 32), num_groups=4, expansion=2),
            forward_solver=dict(type='AndersonSolver', max_evals=8, tol=1e-3),
            gradient=dict(type='ImplicitGradient', solver=SMALL),
        ),
        [8, 16, 24, 32],
    ),
    ResNet=(dict(type='ResNet', depth=18), [64, 128, 256, 512]),
)
# Stock configs, and whether one has a feature pyramid.
DETECTORS = dict(
    RetinaNet=('retinanet/retinanet_r50_fpn_1x_coco.py', True),
    FasterRCNN=('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', True),
    FCOS=('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', True),
    DETR=('detr/detr_r50_8xb2-150e_coco.py', False),
)


def detector(name, backbone):
    """A stock detector on another backbone."""
    path, has_pyramid = DETECTORS[name]
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / path)
    settings, channels = BACKBONES[backbone]
    cfg.model.backbone = dict(settings)
    if has_pyramid:
        cfg.model.neck.in_channels = channels
    else:
        cfg.model.backbone.out_indices = (3,)
        cfg.model.neck.in_channels = channels[-1:]
    # Images are not padded, and a fresh model finds something.
    cfg.model.data_preprocessor.pad_size_divisor = 1
    test_cfg = cfg.model.test_cfg
    test_cfg.get('rcnn', test_cfg).score_thr = 0.0
    if 'rcnn' in test_cfg:
        cfg.model.train_cfg.rcnn.sampler.num = 32  # as many regions are enough
    return build_model(cfg)


# The others take as long each.
SLOW = pytest.mark.slow


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize(
    'name', ['RetinaNet', *(pytest.param(n, marks=SLOW) for n in [*DETECTORS][1:])]
)
def test_trains_and_predicts(name, backbone):
    model = detector(name, backbone).train()
    model.backbone.init_weights()
    data = demo_mm_inputs(2, [(3, 64, 64)] * 2, num_classes=80)
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss > 0
    loss.backward()
    for key, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    model.eval()
    (result,) = model.test_step(demo_mm_inputs(1, [(3, 47, 71)], num_classes=80))
    found = result.pred_instances
    assert len(found) > 0
    assert found.bboxes.isfinite().all()
    assert found.scores.isfinite().all()
    assert found.labels.max() < 80


@pytest.fixture(scope='module')
def place(run_tool, tmp_path_factory):
    """A folder with the data set under ``data``, where the config looks."""
    path = tmp_path_factory.mktemp('place')
    run_tool('dataset_converters/digit_detection.py', cwd=path)
    return path


@pytest.fixture(scope='module')
def config(root, place):
    """The recipe with the hooks of this project and metrics of the equilibrium."""
    path = place / 'config.py'
    path.write_text(
        f"""_base_ = [{str(root / 'configs' / CONFIG)!r}]
default_hooks = dict(
    equilibrium=dict(pretrain_iters=2),
    jacobian=dict(type='JacobianRegularizationHook', weight=0.1, freq=1.0),
    trajectory=dict(type='TrajectorySupervisionHook', n_states=1, weight=0.5),
    logger=dict(interval=1),
)
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader = dict(batch_size=2, dataset=dict(indices=8))
val_dataloader = dict(dataset=dict(indices=4))
test_dataloader = dict(dataset=dict(indices=4))
model = dict(test_cfg=dict(score_thr=0.0))
val_evaluator = [
    _base_.val_evaluator,
    dict(type='SolverStatistics', _scope_='mdeq_mm', tolerances=(1e-1,)),
]
"""
    )
    return path


@pytest.fixture(scope='module')
def trained(run_tool, place, config):
    """Work directory of four iterations, two of them at the equilibrium."""
    work_dir = place / 'run'
    run_tool('train.py', config, '--work-dir', work_dir, *NO_WORKERS, cwd=place)
    return work_dir


@pytest.mark.slow
class TestTools:
    def test_hooks(self, trained, scalars):
        records = [record for record in scalars(trained) if 'loss' in record]
        assert len(records) == 4
        assert all(math.isfinite(record['loss']) for record in records)
        for name in ('forward_residual', 'loss_jacobian', 'loss_trajectory'):
            assert [name in record for record in records] == [False] * 2 + [True] * 2

    def test_evaluation(self, trained, scalars):
        (record,) = (r for r in scalars(trained) if 'coco/bbox_mAP' in r)
        assert 0 <= record['coco/bbox_mAP'] <= 1
        assert any('evals' in name for name in record)

    def test_evaluates_and_draws(self, run_tool, place, config, trained):
        output = run_tool(
            *('test.py', config, trained / 'epoch_1.pth'),
            # Beside the work directory, which is relative as it is by default.
            *('--show-dir', 'drawn', '--work-dir', 'test', '--out', 'found.pkl'),
            *NO_WORKERS,
            cwd=place,
        )
        assert 'coco/bbox_mAP' in output
        pictures = sorted(path.name for path in (place / 'drawn').iterdir())
        assert pictures == [f'{index:04d}.png' for index in range(4)]
        # Ground truth beside predictions.
        picture = cv2.imread(str(place / 'drawn/0000.png'))
        assert picture.shape[1] == 2 * picture.shape[0]
        assert (place / 'found.pkl').stat().st_size > 1000

    def test_stock_inference(self, place, config, trained):
        model = init_detector(str(config), str(trained / 'epoch_1.pth'), device='cpu')
        found = inference_detector(
            model, str(place / 'data/digit_detection/val/0000.png')
        )
        assert len(found.pred_instances) > 0

    def test_other_tools(self, run_tool, place, config, trained):
        output = run_tool(
            'analysis_tools/get_flops.py', config, '--shape', 96, 96, cwd=place
        )
        assert 'cell' in output
        run_tool(
            'analysis_tools/plot_convergence.py',
            *(config, trained / 'epoch_1.pth', '--out', place / 'convergence.png'),
            *('--num-samples', 2, *NO_WORKERS),
            cwd=place,
        )
        assert (place / 'convergence.png').stat().st_size > 1000


@pytest.mark.slow
def test_loss_falls(root, run_tool, place, scalars):
    """Over 120 iterations of the recipe, the last 20 of them at the equilibrium."""
    work_dir = place / 'falls'
    run_tool(
        *('train.py', root / 'configs' / CONFIG, '--work-dir', work_dir, *NO_WORKERS),
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=3',
        'train_dataloader.dataset.indices=160',
        'val_dataloader.dataset.indices=8',
        'default_hooks.equilibrium.pretrain_iters=100',
        cwd=place,
    )
    records = [record for record in scalars(work_dir) if 'loss' in record]
    losses = [record['loss'] for record in records]
    assert records[-1]['step'] == 120
    assert 'forward_residual' in records[-1]
    assert losses[-1] < 0.6 * losses[0]
