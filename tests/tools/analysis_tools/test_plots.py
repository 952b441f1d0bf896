"""The plots of a trained model, by their command lines."""

import cv2
import pytest
import torch

from mdeq_mm import apis

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
        image, truth, prediction = samples[1]
        assert (image == cv2.imread(folder.format('img_dir'))[..., ::-1]).all()
        assert (truth == cv2.imread(folder.format('ann_dir'), -1)).all()
        assert prediction.shape == (64, 64)
        assert prediction.max() <= 10

    def test_classifier(self, tool, root):
        with pytest.raises(ValueError, match="default_scope 'mmseg', got 'mmpretrain'"):
            tool.main([str(root / CLASSIFIER), 'model.pth'])


@pytest.mark.parametrize('name', ['plot_convergence', 'plot_segmentation'])
def test_bad_arguments(load_tool, capsys, name):
    with pytest.raises(SystemExit):
        load_tool(f'analysis_tools/{name}.py').main(['a', 'b', '--num-samples', '0'])
    assert '--num-samples: must be at least 1, got 0' in capsys.readouterr().err
