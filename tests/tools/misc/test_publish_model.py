"""What of a training checkpoint is handed out."""

import hashlib

import pytest
import torch

from mdeq_mm.apis import build_model, load_config, load_model, single_layer
from mdeq_mm.deq import Unrolled

CONFIG = 'configs/classification/mdeq-tiny_1xb64_digits.py'


@pytest.fixture
def tool(load_tool):
    return load_tool('misc/publish_model.py')


@pytest.fixture
def cfg(root):
    return load_config(root / CONFIG)


@pytest.fixture
def trained(cfg, tmp_path):
    """A checkpoint of the unrolled phase, as mmengine writes it."""
    model = build_model(cfg)
    single_layer(model).mode = Unrolled(2)
    meta = dict(
        cfg='work_dir = "/home/me"',
        dataset_meta=dict(classes=('a', 'b')),
        epoch=3,
        experiment_name='mine',
        iter=7,
        mmengine_version='0.10.7',
        seed=0,
        time='20261129_155255',
    )
    torch.save(
        dict(meta=meta, state_dict=model.state_dict(), optimizer={}, message_hub={}),
        tmp_path / 'epoch_3.pth',
    )
    return tmp_path / 'epoch_3.pth'


def test_file(tool, cfg, trained, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/model.pth').touch()
    tool.main([str(trained), str(tmp_path / 'out/model.pth')])
    (path,) = (tmp_path / 'out').glob('model_20261129-????????.pth')
    assert len(list((tmp_path / 'out').iterdir())) == 2
    assert (tmp_path / 'out/model.pth').stat().st_size == 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stem.endswith(f'-{digest[:8]}')
    assert f'Weights: {path}\nSHA256: {digest}\n' in capsys.readouterr().out
    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta'].pop('mdeq_mm_version')
    assert content['meta'] == dict(
        dataset_meta=dict(classes=('a', 'b')),
        epoch=3,
        iter=7,
        mmengine_version='0.10.7',
        seed=0,
        time='20261129_155255',
    )
    # The mode of the model goes with its weights.
    assert isinstance(single_layer(load_model(cfg, path, 'cpu')).mode, Unrolled)


@pytest.mark.parametrize('content', [{}, dict(state_dict={}), dict(meta=dict(time=''))])
def test_no_training_checkpoint(tool, tmp_path, content):
    torch.save(content, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'weights\.pth must be a checkpoint that a'):
        tool.main([str(tmp_path / 'weights.pth'), str(tmp_path / 'out/model.pth')])
    assert not (tmp_path / 'out').exists()


def test_bad_ending(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(['epoch_3.pth', 'model'])
    assert 'must end in .pth, got model' in capsys.readouterr().err
