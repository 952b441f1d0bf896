"""Checkpoints are loaded whole, and nothing in a hostile file runs."""

import os
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as stock
from torch import nn

from mdeq_mm.checkpoints import load_checkpoint, load_from_local, safe_loading

from . import hostile

pytestmark = pytest.mark.versions


@pytest.fixture
def trained(make_runner):
    """A training checkpoint as mmengine writes it."""
    runner = make_runner([dict(type='RandomStateHook')], length=3)
    runner.train()
    return runner.work_dir + '/iter_3.pth'


class Loads(BaseModule):
    """Loads its first weights from a checkpoint."""

    def __init__(self, checkpoint):
        super().__init__(dict(type='Pretrained', checkpoint=str(checkpoint)))
        self.w = nn.Parameter(torch.zeros(1))


class TestFile:
    def test_training_checkpoint(self, trained):
        expected = torch.load(trained, map_location='cpu')
        loaded = load_from_local(trained)
        assert loaded.keys() == expected.keys()
        for key, tensor in loaded['state_dict'].items():
            assert torch.equal(tensor, expected['state_dict'][key]), key
        histories = loaded['message_hub']['log_scalars']
        assert histories
        for name, history in histories.items():
            assert type(history) is HistoryBuffer
            other = expected['message_hub']['log_scalars'][name]
            for found, wanted in zip(history.data, other.data):
                assert type(found) is np.ndarray
                np.testing.assert_array_equal(found, wanted)
        assert loaded['meta'] == expected['meta']
        assert repr(loaded['random_states']) == repr(expected['random_states'])

    @pytest.mark.parametrize('save', [hostile.archive, hostile.legacy])
    def test_formats(self, tmp_path, save):
        save(tmp_path / 'a.pth', dict(state_dict={'w': torch.arange(3.0)}, meta={}))
        loaded = load_from_local(str(tmp_path / 'a.pth'))
        assert loaded['state_dict']['w'].tolist() == [0, 1, 2]

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv('HOME', str(tmp_path))
        torch.save({'a': 1}, tmp_path / 'a.pth')
        assert load_checkpoint('~/a.pth') == {'a': 1}

    @pytest.mark.parametrize('length', [0, 1, 4, 100, -300, -40, -1])
    def test_torn(self, tmp_path, length):
        path = tmp_path / 'a.pth'
        torch.save(dict(state_dict={'w': torch.zeros(100)}), path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match='a.pth is (empty|truncated)'):
            load_from_local(path)

    @pytest.mark.parametrize('content', [b'\0' * 99, b'not a checkpoint', b'PK\3\4abc'])
    def test_something_else(self, tmp_path, content):
        (tmp_path / 'a.pth').write_bytes(content)
        with pytest.raises(ValueError, match='a.pth is truncated, or is not what'):
            load_from_local(tmp_path / 'a.pth')

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='there is no checkpoint .*absent'):
            load_from_local(tmp_path / 'absent.pth')
        os.mkfifo(tmp_path / 'pipe')
        for path in (tmp_path, tmp_path / 'pipe', '/dev/zero'):
            with pytest.raises(ValueError, match='not a checkpoint file'):
                load_from_local(path)


@pytest.mark.parametrize('save', hostile.FORMATS)
@pytest.mark.parametrize('place', hostile.PLACES)
class TestHostileFile:
    @pytest.fixture
    def path(self, tmp_path, save, place):
        save(tmp_path / 'a.pth', place(hostile.makes(tmp_path / 'harm')))
        return tmp_path / 'a.pth'

    def test_by_itself(self, path, tmp_path):
        with pytest.raises(ValueError, match='nothing in it was run'):
            load_checkpoint(path)
        assert not (tmp_path / 'harm').exists()

    def test_within_mmengine(self, path, tmp_path):
        """As first weights, and as checkpoint of whatever uses mmengine's loader."""
        for load in (
            Loads(path).init_weights,
            partial(stock.load_checkpoint, nn.Linear(1, 1), str(path)),
        ):
            with safe_loading(), pytest.raises(ValueError, match='was run'):
                load()
        assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    ('value', 'name'),
    [(Ellipsis, 'Ellipsis'), (range(3), 'x?range'), (slice(3), 'slice')],
)
def test_builtin_that_is_not_known(tmp_path, zipped, value, name):
    """The file is whole, so the message does not call it damaged."""
    path = tmp_path / 'a.pth'
    torch.save(dict(a=value), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf'asks for [\w.]*{name}, which is no part'):
        load_from_local(path)


class TestSafeLoading:
    def test_ends(self):
        def loaders():
            names = ('a.pth', 'http://b', 'https://b')
            return [CheckpointLoader._get_checkpoint_loader(name) for name in names]

        before = loaders()
        with safe_loading():
            assert not set(loaders()) & set(before)
        assert loaders() == before
        with pytest.raises(KeyError), safe_loading():
            raise KeyError
        assert loaders() == before

    def test_of_two_the_outer_one_goes_on(self):
        def loader():
            return CheckpointLoader._get_checkpoint_loader('a.pth')

        with safe_loading():
            mine = loader()
            with safe_loading():
                pass
            assert loader() is mine

    def test_loader_of_a_user_is_put_back(self, monkeypatch):
        monkeypatch.setattr(
            CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes)
        )
        CheckpointLoader.register_scheme('', print, force=True)
        with safe_loading():
            assert CheckpointLoader._get_checkpoint_loader('a.pth') is not print
        assert CheckpointLoader._get_checkpoint_loader('a.pth') is print

    def test_first_weights(self, tmp_path):
        torch.save({'w': torch.ones(1)}, tmp_path / 'a.pth')
        model = Loads(tmp_path / 'a.pth')
        with safe_loading():
            model.init_weights()
        assert model.w.item() == 1


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a server of the test's folder; torch has a cache of its own."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'served').mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=str(tmp_path / 'served'))
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


class TestUrl:
    def test_checkpoint(self, server, tmp_path):
        torch.save({'w': torch.ones(1)}, tmp_path / 'served/a.pth')
        assert load_checkpoint(f'{server}/a.pth')['w'] == 1
        (tmp_path / 'served/a.pth').unlink()
        model = Loads(f'{server}/a.pth')  # from the cache
        with safe_loading():
            model.init_weights()
        assert model.w.item() == 1

    def test_hostile(self, server, tmp_path):
        """torch.hub loads with weights_only=False, whatever the version."""
        harm = hostile.makes(tmp_path / 'harm')
        torch.save(hostile.in_meta(harm), tmp_path / 'served/b.pth')
        with pytest.raises(ValueError, match='asks for posix.mkdir'):
            load_checkpoint(f'{server}/b.pth')
        with safe_loading(), pytest.raises(ValueError, match='asks for posix.mkdir'):
            Loads(f'{server}/b.pth').init_weights()
        assert not (tmp_path / 'harm').exists()


def test_empty_log_history(tmp_path):
    """As a message hub holds it before its first value."""
    torch.save({'log': HistoryBuffer()}, tmp_path / 'a.pth')
    history = load_from_local(tmp_path / 'a.pth')['log']
    assert [len(part) for part in history.data] == [0, 0]
