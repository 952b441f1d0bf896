"""The reader for a torch before 2.6, which works with every torch."""

import collections
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mdeq_mm.checkpoints.restricted import read_archive

from . import hostile

pytestmark = pytest.mark.versions
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.complex64, torch.complex128),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'a.pth'


class TestContent:
    @pytest.mark.parametrize('dtype', DTYPES)
    def test_dtypes(self, path, dtype):
        tensor = torch.arange(6).reshape(2, 3).to(dtype)
        torch.save([tensor, dtype], path)
        found, found_dtype = read_archive(path)
        assert found_dtype is found.dtype is dtype
        assert torch.equal(found, tensor)

    @pytest.mark.parametrize(
        'tensor',
        [
            torch.zeros(0),
            torch.zeros(2, 0),
            torch.tensor(3.0),
            torch.arange(12.0).reshape(3, 4).mT,
            torch.arange(12.0)[5:9],
            torch.ones(1).expand(5),
            torch.ones(2, requires_grad=True),
            torch.nn.Parameter(torch.ones(2), requires_grad=False),
        ],
    )
    def test_tensors(self, path, tensor):
        torch.save(tensor, path)
        found = read_archive(path)
        assert type(found) is type(tensor)
        assert torch.equal(found, tensor)
        assert found.stride() == tensor.stride()
        assert found.requires_grad == tensor.requires_grad

    def test_shared_memory(self, path):
        whole = torch.zeros(4)
        torch.save([whole, whole[1:3]], path)
        whole, part = read_archive(path)
        part += 1
        assert whole.tolist() == [0, 1, 1, 0]

    def test_plain_values(self, path):
        state_dict = torch.nn.Linear(1, 1).state_dict()
        content = dict(
            state_dict=state_dict,
            numbers=(1, 2**70, 1.5, True, None),
            text='\u00e4\n',
            raw=b'\0\xff',
            kinds=[torch.Size([2]), torch.device('cpu'), {1}, frozenset({2})],
            number=np.float64(0.5),
            array=np.arange(3),
            history=HistoryBuffer([1.0], [1]),
        )
        torch.save(content, path)
        found = read_archive(path)
        assert found.pop('array').tolist() == content.pop('array').tolist()
        history = found.pop('history')
        del content['history']
        assert type(history) is HistoryBuffer
        assert history.mean() == 1
        assert repr(found) == repr(content)
        assert found['state_dict']._metadata == state_dict._metadata

    def test_device(self, path):
        torch.save(torch.zeros(2), path)
        assert read_archive(path, 'meta').is_meta


class TestRefused:
    @pytest.mark.parametrize(
        ('old', 'new'),
        [
            # Beyond the end of its bytes, torch 2.1 reads memory of the process.
            pytest.param(b'K\x04tq', b'K\x05tq', id='longer'),
            pytest.param(b'K\x04tq', b'J\0\xc2\xeb\x0btq', id='much-longer'),
            pytest.param(b'K\x04tq', b'J\xff\xff\xff\xfftq', id='negative'),
            pytest.param(b'FloatStorage', b'DoubleStorage', id='wider'),
            pytest.param(b'K\x04\x85', b'K\x05\x85', id='view-beyond-the-end'),
            pytest.param(b'QK\0', b'QK\x09', id='offset-beyond-the-end'),
            pytest.param(b'X\x01\0\0\x000', b'X\x01\0\0\x001', id='no-such-record'),
        ],
    )
    def test_sizes_that_lie(self, path, tmp_path, old, new):
        torch.save(torch.arange(4.0), path)
        hostile.rewritten(path, tmp_path / 'b.pth', old=old, new=new)
        with pytest.raises((pickle.UnpicklingError, RuntimeError, KeyError)):
            read_archive(tmp_path / 'b.pth')

    def test_compressed(self, path):
        """A record of zeros could be as large as memory."""
        torch.save(torch.zeros(4), path)
        with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('a/data/1', b'\0' * 100000)
        with pytest.raises(pickle.UnpicklingError, match='compressed'):
            read_archive(path)

    def test_two_pickles(self, path):
        torch.save(torch.zeros(4), path)
        with zipfile.ZipFile(path, 'a') as archive:
            archive.writestr('b/data.pkl', b'')
        with pytest.raises(ValueError, match='unpack'):
            read_archive(path)

    def test_damaged_bytes(self, path):
        torch.save(torch.full((4,), 1.5), path)
        data = path.read_bytes()
        stored = torch.full((4,), 1.5).numpy().tobytes()
        path.write_bytes(data.replace(stored, stored[::-1]))
        with pytest.raises(zipfile.BadZipFile, match='CRC'):
            read_archive(path)

    @pytest.mark.parametrize(
        'function',
        [eval, exec, print, open, torch.load, np.load, collections.Counter, vars],
    )
    def test_calls(self, path, function):
        torch.save([hostile.Call(function, '1')], path)
        with pytest.raises(pickle.UnpicklingError, match='GLOBAL'):
            read_archive(path)

    def test_attributes(self, path):
        for owner, name in ((HistoryBuffer, '__init__'), ([], 'append')):
            torch.save([hostile.Call(getattr, owner, name)], path)
            with pytest.raises(pickle.UnpicklingError, match='may not read'):
                read_archive(path)

    @pytest.mark.parametrize('name', ['__defaults__', '__code__', '_call', 'other'])
    @pytest.mark.parametrize('attributes_in', [0, 1])
    def test_changed_functions(self, path, tmp_path, name, attributes_in):
        """The state of an object may be a change of attributes."""
        changes = {name: (1,)}
        state = (changes, None) if attributes_in == 0 else (None, changes)
        torch.save(hostile.Call(len, 1, state=state), path)

        def change(record, data):
            # The state is given to the function instead of the result of its call.
            if record.endswith('data.pkl'):
                call = data[data.index(b'c__builtin__') : data.index(b'R') + 1]
                function = b'ctorch._utils\n_rebuild_tensor_v2\n'
                data = data.replace(call, function)
            return [(record, data)]

        hostile.rewritten(path, tmp_path / 'b.pth', change)
        with pytest.raises((pickle.UnpicklingError, AttributeError)):
            read_archive(tmp_path / 'b.pth')
