"""The plots of a trained model, by their command lines."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from mdeq_mm import apis
from mdeq_mm.visualization import Sample, plot_segmentations

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'


@pytest.fixture
def arguments(root, scenes, calm):
    """Config and checkpoint; the images are in the working directory."""
    cfg = apis.load_config(root / CONFIG)
    model = calm(apis.build_model(cfg))
    torch.save(dict(state_dict=model.state_dict()), scenes / 'model.pth')
    return [
        *(str(root / CONFIG), str(scenes / 'model.pth'), '--cfg-options'),
        *('test_dataloader.batch_size=2', 'test_dataloader.num_workers=0'),
        'test_dataloader.persistent_workers=False',
    ]


def record(calls):
    return lambda *args, **kwargs: calls.append((args, kwargs))


@pytest.mark.parametrize('option', ['model.backbone.forward_solver.tol=0.1', None])
@pytest.mark.slow
def test_convergence(load_tool, arguments, scenes, monkeypatch, capsys, option):
    tool = load_tool('analysis_tools/plot_convergence.py')
    plotted = []
    out = scenes / 'new/convergence.png'
    arguments += [] if option is None else [option]
    tool.main([*arguments, '--out', str(out), '--num-samples', '3'])
    assert cv2.imread(str(out)).shape[2] == 3
    assert f'{out} written' in capsys.readouterr().out
    monkeypatch.setattr(tool, 'plot_convergence', record(plotted))
    tool.main([*arguments, '--num-samples', '3', '--max-evals', '7'])
    ((trace, path), options) = plotted[0]
    assert trace.shape == (7, 3)
    assert path == 'convergence.png'
    assert options == dict(
        title='fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64, BroydenSolver',
        tol=1e-3 if option is None else 0.1,
        max_evals=20,
        stop_mode='rel',
    )


@pytest.mark.parametrize(
    'command',
    [['plot_convergence.py'], ['compare_gradients.py'], ['benchmark.py', 'solvers']],
    ids=lambda command: command[0],
)
def test_unreadable_image(load_tool, arguments, scenes, command):
    (scenes / 'data/digit_scenes/img_dir/test/0001.png').write_bytes(b'')
    tool, *kind = command
    if kind:
        arguments.insert(1, '--checkpoint')
    with pytest.raises(ValueError, match=r'sample 1 \(.*test/0001.png, .*cannot be'):
        load_tool(f'analysis_tools/{tool}').main([*kind, *arguments])


class TestSegmentation:
    @pytest.fixture
    def tool(self, load_tool):
        return load_tool('analysis_tools/plot_segmentation.py')

    def test_picture(self, tool, arguments, scenes, capsys):
        out = scenes / 'new/segmentation.png'
        tool.main([*arguments, '--out', str(out), '--num-samples', '2'])
        assert cv2.imread(str(out)).shape[2] == 3
        assert f'{out} written' in capsys.readouterr().out

    def test_samples(self, tool, arguments, monkeypatch):
        drawn = []
        monkeypatch.setattr(tool, 'plot_segmentations', record(drawn))
        tool.main([*arguments, '--num-samples', '9'])
        ((samples, path), options) = drawn[0]
        assert path == 'segmentation.png'
        assert len(samples) == 3  # all there are
        assert len(options['classes']) == len(options['palette']) == 11
        folder = 'data/digit_scenes/{}/test/0001.png'
        image, truth, prediction, residual = samples[1]
        assert (image == cv2.imread(folder.format('img_dir'))[..., ::-1]).all()
        assert (truth == cv2.imread(folder.format('ann_dir'), -1)).all()
        assert prediction.shape == (64, 64)
        assert prediction.max() <= 10
        assert residual is None

    def test_residual(self, tool, arguments, scenes, monkeypatch):
        drawn = []
        monkeypatch.setattr(tool, 'plot_segmentations', record(drawn))
        options = ['--residual', '--side-by-side', '--height', '3', '--opacity', '1']
        tool.main([*arguments, '--num-samples', '2', *options])
        ((samples, _), options) = drawn[0]
        assert [sample.residual.shape for sample in samples] == [(32, 32)] * 2
        assert 0 < samples[0].residual.max() < 0.1
        assert (samples[0].residual != samples[1].residual).any()
        options = {key: options[key] for key in ('side_by_side', 'height', 'opacity')}
        assert options == dict(side_by_side=True, height=3, opacity=1)

    def test_residual_in_several_passes(self, tool, arguments, scenes):
        sliding = [
            'model.test_cfg.mode=slide',
            *('model.test_cfg.stride=(32,32)', 'model.test_cfg.crop_size=(32,32)'),
        ]
        message = r"one pass per image, as with test_cfg.mode='whole', got 4"
        with pytest.raises(ValueError, match=message):
            tool.main([*arguments, *sliding, '--residual'])

    def test_without_annotations(self, tool, arguments, scenes, capsys):
        shutil.rmtree(scenes / 'data/digit_scenes/ann_dir')
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
        config = scenes / 'config.py'
        config.write_text(
            f'_base_ = {arguments[0]!r}\n'
            f'test_dataloader = dict(dataset=dict(pipeline={pipeline}))\n'
        )
        out = scenes / 'segmentation.png'
        tool.main([str(config), *arguments[1:], '--out', str(out)])
        with_truth = scenes / 'with.png'
        plot_segmentations(
            [Sample(np.zeros((64, 64, 3), np.uint8), *[np.zeros((64, 64), int)] * 2)]
            * 3,
            *(with_truth, ['a'], [[0, 0, 0]]),
        )
        heights = [cv2.imread(str(path)).shape[0] for path in (out, with_truth)]
        assert heights[0] == pytest.approx(heights[1] - 1.7 * 150, abs=2)

    @pytest.mark.parametrize('n_outputs', [1, 2])
    @pytest.mark.slow
    def test_two_classes(
        self, tool, root, arguments, scenes, calm, monkeypatch, n_outputs
    ):
        """A head may have one output for both."""
        options = dict(
            num_classes=2,
            out_channels=n_outputs,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=n_outputs == 1),
        )
        cfg_options = {f'model.decode_head.{k}': v for k, v in options.items()}
        cfg = apis.load_config(root / CONFIG, cfg_options)
        model = calm(apis.build_model(cfg))
        torch.save(dict(state_dict=model.state_dict()), scenes / 'model.pth')
        config = scenes / 'config.py'
        metainfo = dict(classes=('a', 'b'), palette=[[0, 0, 0], [255, 0, 0]])
        config.write_text(
            f'_base_ = {arguments[0]!r}\n'
            f'model = dict(decode_head={options})\n'
            f'test_dataloader = dict(dataset=dict(metainfo={metainfo}))\n'
        )
        out = scenes / 'segmentation.png'
        tool.main([str(config), *arguments[1:], '--out', str(out)])
        assert cv2.imread(str(out)).shape[2] == 3
        monkeypatch.setattr(tool, 'plot_segmentations', record(drawn := []))
        tool.main([str(config), *arguments[1:]])
        ((samples, _), _) = drawn[0]
        assert {*np.unique([sample.prediction for sample in samples])} <= {0, 1}

    def test_unreadable_image(self, tool, arguments, scenes):
        (scenes / 'data/digit_scenes/img_dir/test/0001.png').write_bytes(b'')
        with pytest.raises(
            ValueError, match=r'sample 1 \(.*test/0001.png, .*cannot be'
        ):
            tool.main(arguments)

    def test_no_classes(self, tool, arguments, scenes):
        config = scenes / 'config.py'
        config.write_text(
            f'_base_ = {arguments[0]!r}\n'
            'test_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True)))\n'
        )
        with pytest.raises(ValueError, match='must name its classes'):
            tool.main([str(config), *arguments[1:]])

    def test_classifier(self, tool, root):
        with pytest.raises(ValueError, match='must be for mmseg, got mmpretrain'):
            tool.main([str(root / CLASSIFIER), 'model.pth'])


@pytest.mark.parametrize('name', ['plot_convergence', 'plot_segmentation'])
def test_bad_arguments(load_tool, capsys, name):
    with pytest.raises(SystemExit):
        load_tool(f'analysis_tools/{name}.py').main(['a', 'b', '--num-samples', '0'])
    assert '--num-samples: must be at least 1, got 0' in capsys.readouterr().err
