import cv2
import numpy as np
import pytest

CLASSIFIER = 'classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
RESNET = 'segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'


@pytest.fixture
def tool(load_tool):
    return load_tool('../demo/image_demo.py')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    content = np.random.default_rng(0).integers(0, 255, (64, 72, 3), np.uint8)
    cv2.imwrite(str(path), content)
    return str(path)


@pytest.mark.parametrize(
    ('config', 'size', 'word'),
    [
        (SEGMENTOR, (64, 72), 'evaluations, residual'),
        (CLASSIFIER, (256, 288), 'evaluations, residual'),
        (RESNET, (64, 72), 'no equilibrium was solved for'),
    ],
)
def test_both_tasks(tool, save_model, image, tmp_path, capsys, config, size, word):
    out = tmp_path / 'new/prediction.png'
    tool.main([image, *save_model(config), '--out', str(out)])
    assert cv2.imread(str(out)).shape == (*size, 3)
    *shares, solve, written = capsys.readouterr().out.splitlines()[-7:]
    assert word in solve
    assert written == f'{out} written'
    percent, _ = shares[-1].split(maxsplit=1)
    assert 0 <= float(percent.rstrip('%')) <= 100


def test_name(tool, image, tmp_path, capsys):
    """The name of a model that comes with its weights stands for both files."""
    tool.main([image, 'fcn_mdeq-micro-contraction_1xb8-600_earth-96x96'])
    assert '% ' in (text := capsys.readouterr().out)
    assert any(name in text for name in ('water', 'forest', 'snow and ice', 'barren'))
    assert (tmp_path / 'prediction.png').exists()


def test_setting_of_the_config(tool, save_model, image, tmp_path, capsys):
    option = 'model.backbone.forward_solver.max_evals=2'
    tool.main([image, *save_model(SEGMENTOR), '--cfg-options', option])
    assert '2 evaluations, residual' in (text := capsys.readouterr().out)
    assert 'tolerance not reached' in text


def test_no_image(tool, save_model, tmp_path):
    (tmp_path / 'image.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'image\.png cannot be read as an image'):
        tool.main([str(tmp_path / 'image.png'), *save_model(SEGMENTOR)])
    assert not (tmp_path / 'prediction.png').exists()


def test_bad_ending_is_found_first(tool, image):
    with pytest.raises(ValueError, match=r'ending of the picture .* got out\.txt'):
        tool.main([image, 'config', 'checkpoint', '--out', 'out.txt'])
