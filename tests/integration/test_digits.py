"""From training to prediction on the built-in data sets, as in `make demo`."""

from pathlib import Path

import cv2
import mmseg.apis
import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DefaultScope
from mmpretrain import ImageClassificationInferencer

from ..isolation import NO_WORKERS

CLASSIFIER = 'classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
STATISTICS = {
    'forward_evals',
    'forward_residual',
    'adjoint_evals',
    'adjoint_residual',
}

# Seconds. On a slow core the training takes 400.
TRAINING_LIMIT = 1200
# Elsewhere it is emulated, dozens of times slower than float32.
HAS_BFLOAT16 = any(
    flag in Path('/proc/cpuinfo').read_text() for flag in ('avx512_bf16', 'amx_bf16')
)


@pytest.fixture(scope='module')
def classifier(root, run_process, workplace, tmp_path_factory):
    """Config and checkpoint of a training of the recipe, with fewer epochs."""
    work_dir = tmp_path_factory.mktemp('classifier')
    config = root / 'configs' / CLASSIFIER
    run_process(
        *('train.py', config, '--work-dir', work_dir, '--cfg-options'),
        # Six epochs are unrolled, and two at the equilibrium.
        *('train_cfg.max_epochs=8', 'param_scheduler.T_max=8'),
        'default_hooks.equilibrium.pretrain_iters=126',
        *('train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4'),
        cwd=workplace,
        timeout=TRAINING_LIMIT,
    )
    return config, work_dir / 'epoch_8.pth'


@pytest.fixture(scope='module')
def segmentor(root, run_tool, workplace, tmp_path_factory):
    """Config and checkpoint of a few iterations: the whole training is the demo's."""
    work_dir = tmp_path_factory.mktemp('segmentor')
    config = root / 'configs' / SEGMENTOR
    run_tool(
        'train.py',
        config,
        *('--work-dir', work_dir, *NO_WORKERS),
        'train_cfg.max_iters=4',
        'train_cfg.val_interval=4',
        'train_dataloader.batch_size=2',
        'val_dataloader.dataset.indices=2',
        'default_hooks.equilibrium.pretrain_iters=2',
        'default_hooks.logger.interval=1',
        cwd=workplace,
    )
    return config, work_dir / 'iter_4.pth'


@pytest.mark.slow
@pytest.mark.timeout(TRAINING_LIMIT)
class TestClassifier:
    def test_accuracy(self, classifier, scalars):
        records = scalars(classifier[1].parent)
        accuracy = [r['accuracy/top1'] for r in records if 'accuracy/top1' in r]
        assert accuracy[-1] >= 95
        phases = [set(r) >= STATISTICS for r in records if 'loss' in r]
        assert phases == sorted(phases)
        assert 0 < sum(phases) < len(phases)

    @pytest.mark.skipif(not HAS_BFLOAT16, reason='the CPU has no bfloat16')
    def test_bfloat16_stays_as_accurate(
        self, run_tool, classifier, workplace, tmp_path, scalars, monkeypatch
    ):
        # mmengine refuses mixed precision without an accelerator; what is behind that
        # runs.
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        work_dir = tmp_path / 'run'
        run_tool(
            *('train.py', classifier[0], '--work-dir', work_dir, *NO_WORKERS),
            *('optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=bfloat16'),
            # An epoch at the equilibrium, on top of the training in float32.
            *(f'load_from={classifier[1]}', 'optim_wrapper.optimizer.lr=2e-4'),
            *('train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
            'default_hooks.equilibrium.pretrain_iters=0',
            cwd=workplace,
        )
        single, half = (
            [r['accuracy/top1'] for r in scalars(folder) if 'accuracy/top1' in r][-1]
            for folder in (classifier[1].parent, work_dir)
        )
        assert abs(half - single) <= 1.5

    def test_evaluation_of_the_checkpoint(
        self, run_process, classifier, workplace, tmp_path, scalars
    ):
        """By a process that knows nothing of the training."""
        records = scalars(classifier[1].parent)
        expected = [r['accuracy/top1'] for r in records if 'accuracy/top1' in r][-1]
        run_process(
            *('test.py', *classifier, '--work-dir', tmp_path),
            *('--out', tmp_path / 'p.pkl'),
            cwd=workplace,
        )
        (path,) = tmp_path.glob('*/*.json')
        assert (
            f'{expected:.4f}' in path.read_text() or str(expected) in path.read_text()
        )
        assert (tmp_path / 'p.pkl').stat().st_size > 1000

    def test_prediction(self, classifier, workplace):
        paths = [
            str(min((workplace / f'data/digits/test/{label}').iterdir()))
            for label in range(10)
        ]
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            inferencer = ImageClassificationInferencer(
                str(classifier[0]), pretrained=str(classifier[1]), device='cpu'
            )
            results = inferencer(paths, batch_size=4)
        hits = [result['pred_label'] == i for i, result in enumerate(results)]
        assert sum(hits) >= 9

    def test_convergence_plot(self, run_tool, classifier, workplace, tmp_path):
        output = run_tool(
            'analysis_tools/plot_convergence.py',
            *classifier,
            *('--out', tmp_path / 'plots/convergence.png', '--num-samples', 5),
            *NO_WORKERS,
            cwd=workplace,
        )
        assert 'convergence.png written' in output
        assert cv2.imread(str(tmp_path / 'plots/convergence.png')).shape[2] == 3

    def test_comparison_of_gradients(self, run_tool, classifier, workplace):
        output = run_tool(
            'analysis_tools/compare_gradients.py',
            *classifier,
            *NO_WORKERS,
            cwd=workplace,
        )
        rows = [line.rsplit(maxsplit=4) for line in output.splitlines()]
        table = {row[0]: [float(value) for value in row[1:]] for row in rows[-9:]}
        evals, products, saved, cosine = table['as configured']
        assert evals == table['Jacobian-free'][0] <= 19  # a budget of 18, and one more
        assert 1 <= products <= 20
        assert saved == table['Jacobian-free'][2]
        assert cosine > 0.95
        assert cosine > max(row[3] for name, row in table.items() if 'phantom' in name)
        assert table['unrolled 18 times'][2] > 5 * saved
        shine = [table[f'SHINE, {n} refinements'] for n in (0, 1, 5)]
        assert [row[1] for row in shine] == [0, 2, 6]
        assert shine[0][3] < shine[1][3] < shine[2][3] < 1
        assert table['as configured, from the inverse'][3] > shine[0][3]


@pytest.mark.versions
class TestSegmentor:
    def test_log(self, segmentor, scalars):
        records = scalars(segmentor[1].parent)
        phases = [set(r) >= STATISTICS for r in records if 'loss' in r]
        assert phases == [False, False, True, True]
        assert 'mIoU' in records[-1]

    def test_evaluation_and_painted_images(
        self, run_tool, segmentor, workplace, tmp_path
    ):
        output = run_tool(
            'test.py',
            *segmentor,
            *('--work-dir', tmp_path / 'run', '--show-dir', tmp_path / 'painted'),
            *(*NO_WORKERS, 'test_dataloader.dataset.indices=3'),
            cwd=workplace,
        )
        assert 'mIoU' in output
        assert len(list((tmp_path / 'painted').rglob('*.png'))) == 3

    def test_prediction(self, segmentor, workplace):
        model = mmseg.apis.init_model(
            str(segmentor[0]), str(segmentor[1]), device='cpu'
        )
        image = workplace / 'data/digit_scenes/img_dir/test/0000.png'
        result = mmseg.apis.inference_model(model, str(image))
        assert result.pred_sem_seg.shape == (64, 64)
        assert torch.unique(result.pred_sem_seg.data).max() <= 10

    def test_pictures(self, run_tool, segmentor, workplace, tmp_path):
        for tool in ('plot_segmentation', 'plot_convergence'):
            picture = tmp_path / f'{tool}.png'
            run_tool(
                f'analysis_tools/{tool}.py',
                *segmentor,
                *('--out', picture, '--num-samples', 3),
                *NO_WORKERS,
                cwd=workplace,
            )
            assert cv2.imread(str(picture)).shape[2] == 3
