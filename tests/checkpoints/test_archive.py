"""What is found out about a checkpoint file before anything in it is loaded.

Hostile files are checked in processes whose memory is limited.
"""

import codecs
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mdeq_mm.checkpoints import archive, check_archive, pickles

from ..limited import limited

pytestmark = pytest.mark.versions  # of torch, which writes the files
HUGE = 10**11
BOTH = pytest.mark.parametrize('zipped', [True, False])


class Call:
    """Becomes a call when it is pickled."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def training_checkpoint():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    history = HistoryBuffer()
    history.update(0.5)
    return dict(
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars=dict(loss=history)),
        numbers=[1, -2, 2**100, 0.5, 1 + 2j, None, True, np.float64(3)],
        containers=((), (1, (2, 3)), {1}, b'bytes', 'text', torch.Size([9999, 9999])),
        devices=torch.device('cuda', 1),
        generators=(torch.get_rng_state(), np.random.get_state()),
        parameter=torch.nn.Parameter(torch.rand(3)),
        tensors=[
            torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            torch.rand(10)[3:7],
            torch.rand(4, 5).t(),
            torch.rand(3).expand(1, 3),
            torch.zeros(0, 5),
            torch.tensor(3),
            *(
                torch.zeros(2, dtype=getattr(torch, name))
                for name in ('bfloat16', 'half', 'double', 'bool', 'uint8', 'complex64')
            ),
        ],
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'file.pth'


@pytest.fixture
def check(path):
    """Checks the file with little memory; returns the message if it is refused."""

    def run():
        result = limited(check_archive, path, memory=1 << 28, seconds=20)
        if result is None:
            return None
        assert type(result) is ValueError, repr(result)
        message = str(result)
        assert message.startswith(f'{path} ')
        assert message.isprintable()
        assert len(message) < len(str(path)) + 250
        return message

    return run


def rewrite(path, change=lambda name, data: data, names=lambda name: name, **kwargs):
    """Writes the records of a zip file again, each changed by a function."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, 'w', **kwargs) as file:
        for name, data in records.items():
            file.writestr(names(name), change(name, data))


def with_pickle(path, content):
    """A zip file of torch whose pickle is replaced."""
    torch.save(dict(a=torch.arange(4.0)), path)
    rewrite(path, lambda name, data: content if name.endswith('data.pkl') else data)


class TestAccepted:
    @BOTH
    def test_training_checkpoint(self, path, check, zipped):
        torch.save(training_checkpoint(), path, _use_new_zipfile_serialization=zipped)
        assert check() is None

    def test_newer_types(self, path, check):
        names = ('float8_e5m2', 'uint16', 'uint32')
        dtypes = [getattr(torch, name) for name in names if hasattr(torch, name)]
        tensors = [torch.zeros(3).to(dtype) for dtype in dtypes]
        if not hasattr(torch, 'uint16'):
            pytest.skip('this torch saves none of them')
        torch.save(tensors, path)
        assert check() is None

    def test_tensor_with_attributes(self, path, check):
        parameter = torch.nn.Parameter(torch.rand(3))
        parameter.attribute = 'text'
        torch.save([parameter, torch.rand(3).as_subclass(torch.nn.Parameter)], path)
        assert check() is None

    @BOTH
    def test_expanded_tensors(self, path, check, zipped):
        """No larger than the file, as a buffer of a model is."""
        tensors = [torch.rand(5000), torch.rand(1, 20).expand(50, 20), torch.rand(())]
        tensors.append(tensors[2].expand(3, 4))
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
        assert check() is None
        torch.save(tensors[1:], path, _use_new_zipfile_serialization=zipped)
        assert 'more numbers' in check()

    def test_without_checksums(self, path, check):
        if not hasattr(torch.serialization, 'set_crc32_options'):
            pytest.skip('this torch always writes them')
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(training_checkpoint(), path)
        finally:
            torch.serialization.set_crc32_options(True)
        assert check() is None

    def test_written_by_another_program(self, path, check):
        """That has no use for the records of large files."""
        torch.save(training_checkpoint(), path)
        rewrite(path)
        assert check() is None

    def test_sizes_of_64_bits(self, path, check):
        """As they are in the directory of a file of over 4 GiB."""
        torch.save(dict(a=torch.arange(4.0)), path)
        rewrite(path)
        content = path.read_bytes()
        end = len(content) - 22
        start = struct.unpack_from('<I', content, end + 16)[0]
        entries, place = [], start
        while place < end:
            fields = list(archive._ENTRY.unpack_from(content, place))
            name = content[place + 46 : place + 46 + fields[10]]
            wide = struct.pack('<2H3Q', 1, 24, fields[9], fields[8], fields[16])
            place += 46 + sum(fields[10:13])
            fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
            fields[11] = 8 + len(wide)
            other = struct.pack('<2H4s', 0x4242, 4, b'some')
            entries.append(archive._ENTRY.pack(*fields) + name + other + wide)
        directory = b''.join(entries)
        last = list(archive._END.unpack_from(content, end))
        last[5] = len(directory)
        path.write_bytes(content[:start] + directory + archive._END.pack(*last))
        assert torch.load(path, weights_only=True)['a'].tolist() == [0, 1, 2, 3]
        assert check() is None

    def test_as_text(self, path):
        torch.save(torch.rand(3), path)
        check_archive(str(path))


class TestNoRegularFile:
    @pytest.mark.parametrize('device', ['/dev/zero', '/dev/null', '/dev/random'])
    def test_device(self, path, check, device):
        path.symlink_to(device)
        assert 'is a device or a pipe' in check()

    def test_pipe(self, path, check):
        os.mkfifo(path)
        assert 'is a device or a pipe' in check()

    def test_directory(self, path, check):
        path.mkdir()
        assert 'is a directory' in check()

    def test_link_to_a_file(self, path, check, tmp_path):
        torch.save(torch.rand(3), tmp_path / 'other')
        path.symlink_to(tmp_path / 'other')
        assert check() is None

    def test_absent(self, path):
        with pytest.raises(FileNotFoundError, match='file.pth'):
            check_archive(path)


class TestBombs:
    def test_compressed(self, path, check):
        with_pickle(path, b'\x80\x02.')
        rewrite(
            path,
            lambda name, data: bytes(1 << 28) if name.endswith('data/0') else data,
            compression=zipfile.ZIP_DEFLATED,
            compresslevel=1,
        )
        assert path.stat().st_size < 1 << 21
        assert 'compressed' in check()

    @BOTH
    @pytest.mark.parametrize('protocol', [2, 3, 4, 5])
    def test_protocols(self, path, check, zipped, protocol):
        torch.save(
            dict(a=torch.rand(3), b=[1]),
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        message = check()
        if protocol <= 3:
            assert message is None
        else:
            assert f'protocol {protocol} of pickle' in message

    @BOTH
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bool, torch.float32])
    def test_strides_of_zero(self, path, check, zipped, dtype):
        tensor = torch.zeros(1, dtype=dtype).expand(HUGE)
        torch.save([tensor, tensor], path, _use_new_zipfile_serialization=zipped)
        assert 'asks for more numbers than' in check()

    @BOTH
    @pytest.mark.parametrize('size', [5, 255])
    def test_storage_that_lies(self, path, check, zipped, size):
        """torch 2.1 would read what stands behind it in memory."""
        torch.save(torch.arange(4.0), path, _use_new_zipfile_serialization=zipped)
        code = b'cpuq\x04K\x04'

        def change(name, data):
            return data.replace(code, code[:-1] + bytes([size]))

        if zipped:
            rewrite(path, change)
        else:
            path.write_bytes(change('', path.read_bytes()))
        assert check() is not None

    def test_storage_of_the_older_format(self, path, check):
        torch.save(torch.arange(4.0), path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        place = content.index(b'K\x04', content.index(b'cpu'))
        huge = b'\x8a\x05' + HUGE.to_bytes(5, 'little')
        path.write_bytes(content[:place] + huge + content[place + 2 :])
        assert '400,000,000,000 bytes for a tensor' in check()

    @pytest.mark.parametrize(
        'call',
        [
            Call(bytearray, HUGE),
            Call(torch.Tensor, 10**6, 10**5),
            Call(torch.FloatStorage, HUGE),
            Call(np.ndarray, (10**6, 10**5)),
            Call(
                np.core.multiarray._reconstruct
                if np.__version__ < '2'
                else np._core.multiarray._reconstruct,
                np.ndarray,
                (HUGE,),
                b'b',
            ),
            Call(codecs.encode, 'ä' * 10, 'punycode'),
        ],
    )
    def test_calls(self, path, check, call):
        torch.save(dict(a=call), path, _use_new_zipfile_serialization=False)
        assert 'it asks for ' in check()

    def test_tuple_of_tuples(self, path, check):
        """Small on disk and in memory, and endless for whoever hashes it."""
        doubled = b'q\x00h\x00\x86' * 60
        with_pickle(path, b'\x80\x02}N' + doubled + b'Ns.')
        assert 'unfolds to more' in check()

    @pytest.mark.slow
    def test_many_steps(self, path, check):
        with_pickle(path, b'\x80\x02' + b']' * (pickles.MAX_STEPS + 1) + b'.')
        assert 'steps' in check()

    def test_deep(self, path, check):
        depth = 500_000
        with_pickle(path, b'\x80\x02' + b']' * depth + b'a' * (depth - 1) + b'.')
        assert check() is None
        call = b'ctorch._tensor\n_rebuild_from_type_v2\n'
        nested = (b'(' + call + b'N') * 5000 + b')' + b't' * 5000
        with_pickle(path, b'\x80\x02' + call + nested + b'R.')
        assert 'damaged' in check()

    def test_text_beyond_the_end(self, path, check):
        with_pickle(path, b'\x80\x02X\xff\xff\xff\xff.')
        assert 'breaks off' in check()


class TestOtherTensors:
    @pytest.mark.filterwarnings('ignore')
    @pytest.mark.parametrize(
        'make',
        [
            lambda: torch.rand(3, device='meta'),
            lambda: torch.rand(3, 3).to_sparse(),
            lambda: torch.rand(3, 3).to_sparse_csr(),
            lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8),
        ],
    )
    def test_not_dense(self, path, check, make):
        torch.save(dict(a=make()), path)
        assert 'it asks for torch.' in check()

    def test_state_of_a_tensor(self, path, check):
        """By which one could be moved to memory of another size."""
        torch.save(torch.arange(4.0), path)
        with zipfile.ZipFile(path) as file:
            content = file.read('file/data.pkl')
        with_pickle(path, content[:-1] + b'Nb.')
        assert 'a tensor with a state' in check()


class TestDamaged:
    @BOTH
    @pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.7, 0.99])
    def test_truncated(self, path, check, zipped, share):
        torch.save(training_checkpoint(), path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert 'is truncated, or is not what torch.save writes' in check()

    def test_checksum(self, path, check):
        torch.save(torch.zeros(100), path)
        content = bytearray(path.read_bytes())
        content[content.index(bytes(400)) + 200] = 1
        path.write_bytes(content)
        assert 'checksum of file/data/0' in check()

    def test_checksum_of_a_strange_name(self, path, check):
        torch.save(torch.zeros(100), path)
        content = path.read_bytes().replace(b'file/data/0', b'file/\xff\x1b[2Jx')
        path.write_bytes(content.replace(bytes(400), bytes(399) + b'1'))
        assert 'checksum of file/' in check()

    def test_bytes_in_front(self, path, check):
        """torch would look elsewhere than the directory says."""
        torch.save(torch.zeros(3), path)
        path.write_bytes(b'PK\3\4' + path.read_bytes())
        assert check() is not None

    @pytest.mark.parametrize('more', [b'\0', b'PK\5\6' + bytes(18)])
    def test_bytes_behind(self, path, check, more):
        torch.save(torch.zeros(3), path)
        path.write_bytes(path.read_bytes() + more)
        assert check() is not None

    def test_bytes_behind_the_older_format(self, path, check):
        torch.save(torch.zeros(3), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes() + b'\0')
        assert 'its end' in check()

    @pytest.mark.filterwarnings('ignore:Duplicate name')
    @pytest.mark.parametrize('name', ['file/data.pkl', 'file/DATA.pkl'])
    def test_two_of_a_name(self, path, check, name):
        """torch does not tell capital letters from small ones."""
        torch.save(torch.zeros(3), path)
        rewrite(path)
        with zipfile.ZipFile(path, 'a') as file:
            file.writestr(name, b'\x80\x02N.')
        assert 'directory is damaged' in check()

    def test_two_records_in_one_place(self, path, check):
        torch.save([torch.zeros(3), torch.zeros(3)], path)
        rewrite(path)
        content = path.read_bytes()
        first, second = (content.rindex(b'file/data/%d' % i) for i in (0, 1))
        changed = bytearray(content)
        changed[second - 4 : second] = content[first - 4 : first]
        path.write_bytes(changed)
        assert check() is not None

    def test_swapped_names(self, path, check):
        torch.save([torch.zeros(3), torch.ones(3)], path)
        content = path.read_bytes()
        head, tail = content[:-600], content[-600:]
        for old, new in ((b'data/0', b'data/x'), (b'data/1', b'data/0')):
            tail = tail.replace(old, new)
        path.write_bytes(head + tail.replace(b'data/x', b'data/1'))
        assert check() is not None

    def test_record_of_a_tensor_is_missing(self, path, check):
        torch.save(torch.zeros(3), path)
        rewrite(path, names=lambda name: name.replace('data/0', 'data/1'))
        assert 'other bytes than it needs' in check()

    @pytest.mark.parametrize('content', [b'words', b'PK\3\4', bytes(9999), b'{}' * 99])
    def test_other_files(self, path, check, content):
        path.write_bytes(content)
        assert 'is not what torch.save writes' in check()

    def test_other_zip(self, path, check):
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('folder/notes.txt', 'words')
        assert 'no data.pkl' in check()

    def test_bare_pickle(self, path, check):
        path.write_bytes(pickle.dumps(dict(a=1), 2))
        assert 'does not begin like one' in check()


class TestOtherArchives:
    def test_torchscript(self, path, check):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
        assert 'a TorchScript archive' in check()

    def test_tar_that_begins_like_the_older_format(self, path, check):
        """torch < 2.6 takes files out of it before it looks at anything else."""
        name = pickle.dumps(archive._MAGIC, 2).decode('latin-1')
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode='w', format=tarfile.USTAR_FORMAT, encoding='latin-1'
        ) as file:
            file.addfile(tarfile.TarInfo(name.rstrip('\0')))
        path.write_bytes(buffer.getvalue())
        assert path.read_bytes().startswith(pickle.dumps(archive._MAGIC, 2))
        assert 'a tar archive' in check()


def test_control_characters(path, check):
    with_pickle(path, b'\x80\x02ctorch.\x1b[2J\rx\ny)R.')
    assert r'torch.\x1b[2J\rx' in check()
