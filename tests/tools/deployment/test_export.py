"""The export of a model, by its command line."""

import pytest
import torch
from mmengine.utils import digit_version

from mdeq_mm.apis import build_model, load_config, single_layer
from mdeq_mm.deploy import exporting

from ...deploy.exporters import stand_in

CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('deployment/export.py')


@pytest.fixture
def export(tool, root, calm, tmp_path, capsys):
    """Runs the tool on a contraction; returns the file and what was printed."""

    def run(config, *arguments, suffix='.onnx', unrolled=False):
        cfg = load_config(root / config)
        model = calm(build_model(cfg))
        if unrolled:
            layer = single_layer(model)
            layer.mode = layer.unrolled
        checkpoint, path = tmp_path / 'model.pth', tmp_path / f'out/model{suffix}'
        torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
        command = [root / config, checkpoint, '--out', path, *arguments]
        tool.main([str(word) for word in command])
        return path, capsys.readouterr().out

    return run


def test_segmentor(export, monkeypatch):
    """Its head has align_corners=True, so the size is fixed."""
    stand_in(monkeypatch)
    shape = ('--shape', 33, 47, '--batch-size', 3)
    path, output = export(SEGMENTOR, '--evals', 4, *shape)
    assert path.exists()
    lines = output.splitlines()
    assert lines[0].startswith('images 3x3x33x47: largest difference 0.0e+00')
    assert lines[1].startswith('images 4x3x33x47: ')
    assert 'PyTorch' in lines[0]
    assert lines[2] == 'dynamic: batch'
    assert lines[3].startswith(
        'segmentor: each image takes 4 evaluations by AndersonSolver, none'
    )
    assert lines[4] == f'{path} written'


@pytest.mark.parametrize('unrolled', [False, True])
def test_classifier(export, monkeypatch, unrolled):
    stand_in(monkeypatch)
    _, output = export(CLASSIFIER, '--shape', 20, 20, '--dynamic', unrolled=unrolled)
    lines = output.splitlines()
    assert lines[0].startswith('images 1x')
    assert lines[1] == 'dynamic: nothing'
    name = 'Unrolled' if unrolled else 'AndersonSolver'
    assert lines[2].startswith('classifier: each image takes ')
    assert f'evaluations by {name}, none stops' in lines[2]
    # What is unrolled stays what it is.
    assert lines[2].endswith('is 0.0e+00 of the largest logit') == unrolled


def test_out_is_a_folder(tool, tmp_path, capsys):
    folder = tmp_path / 'model.onnx'
    folder.mkdir()
    with pytest.raises(SystemExit):
        tool.parse_args(['config', 'a.pth', '--out', str(folder)])
    assert '--out must be a file, got the folder' in capsys.readouterr().err


def test_wrong_file_is_not_written(export, monkeypatch, tmp_path):
    stand_in(monkeypatch, 1.01)
    with pytest.raises(RuntimeError, match='not written'):
        export(CLASSIFIER, '--evals', 2, '--shape', 20, 20)
    assert list((tmp_path / 'out').iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'model.pt2'], '--out must end in .onnx, got model.pt2'),
        (['--out', 'm.onnx', '--format', 'torch'], '--out must end in .pt2'),
        (['--out', 'm.onnx', '--evals', '0'], 'must be at least 1, got 0'),
        (['--out', 'm.onnx', '--solver', 'broyden'], "invalid choice: 'broyden'"),
        (['--out', 'm.onnx', '--dynamic', 'width'], "invalid choice: 'width'"),
        (['--out', 'm.onnx', '--tolerance', '0'], 'must be positive, got 0'),
        ([], 'the following arguments are required: --out'),
    ],
)
def test_bad_arguments(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.parse_args(['config.py', 'model.pth', *arguments])
    assert message in capsys.readouterr().err


def test_needs_are_checked_before_work_starts(tool, monkeypatch):
    """No file is read."""

    def refuse(file_format):
        raise ImportError('onnx must be installed')

    monkeypatch.setattr(tool, 'check_requirements', refuse)
    with pytest.raises(ImportError, match='must be installed'):
        tool.main(['no/config.py', 'no.pth', '--out', 'model.onnx'])


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version(exporting.MIN_TORCH),
    reason=f'export needs torch {exporting.MIN_TORCH}',
)
def test_onnxruntime_runs_the_file(export):
    """A file on its own: no part of this package runs."""
    onnxruntime = pytest.importorskip('onnxruntime')
    path, _ = export(CLASSIFIER, '--evals', 2, '--shape', 20, 24)
    session = onnxruntime.InferenceSession(path)
    (images,) = session.get_inputs()
    batch = torch.rand(3, images.shape[1], 17, 19).numpy()
    (logits,) = session.run(['logits'], {'images': batch})
    assert logits.shape == (3, 10)
