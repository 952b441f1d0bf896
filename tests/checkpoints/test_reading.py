"""Reading foreign files: what is unwrapped, and what is refused."""

import hashlib
import os
import pickle
import tarfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mdeq_mm.checkpoints import read_official_checkpoint

pytestmark = pytest.mark.versions  # of torch, which reads the files


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def state():
    return OrderedDict(
        {
            'stage0.0.weight': torch.rand(2, 2, 1, 1),
            'stage0.1.num_batches_tracked': torch.tensor(7),
            'fullstage.branches.0.blocks.0.gn1.weight': torch.rand(3),
        }
    )


@pytest.fixture
def copies(state):
    key = 'fullstage.branches.0.blocks.0.gn1.weight'
    return {
        'fullstage_copy.branches.0.blocks.0.gn1.weight': state[key] + 1,
        'deq.func.branches.0.blocks.0.gn1.weight': state[key],
        'deq.func_copy.branches.0.blocks.0.gn1.weight': state[key] + 1,
    }


@pytest.fixture
def read(tmp_path):
    def save_and_read(content, **kwargs):
        path = tmp_path / 'official.pkl'
        torch.save(content, path, **kwargs)
        return read_official_checkpoint(path)

    return save_and_read


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
        assert actual[key].dtype == tensor.dtype


class TestForms:
    @pytest.mark.parametrize('zipped', [True, False])
    def test_plain(self, read, state, tmp_path, zipped):
        found = read(state, _use_new_zipfile_serialization=zipped)
        assert_same(found.state_dict, state)
        content = (tmp_path / 'official.pkl').read_bytes()
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert found.release == '2021'
        assert found.dropped == {}

    @pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
    def test_precision(self, read, state, dtype):
        stored = {
            key: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for key, tensor in state.items()
        }
        expected = {
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in stored.items()
        }
        assert_same(read(stored).state_dict, expected)

    @pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.model.'])
    def test_prefixes(self, read, state, prefix):
        wrapped = {prefix + key: tensor for key, tensor in state.items()}
        loss = prefix.replace('model.', '') + 'loss.criterion.weight'
        found = read({loss: torch.rand(19), **wrapped})
        assert_same(found.state_dict, state)
        assert found.dropped == {'loss.': 1}

    def test_training_checkpoint(self, read, state):
        parameter = torch.nn.Parameter(torch.rand(3))
        optimizer = torch.optim.Adam([parameter])
        parameter.grad = torch.rand(3)
        optimizer.step()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, 1e-6)
        content = dict(
            epoch=3,
            model='cls_mdeq',
            state_dict=state,
            perf=75.5,
            optimizer=optimizer.state_dict(),
            lr_scheduler=scheduler.state_dict(),
            train_global_steps=100,
        )
        assert_same(read(content).state_dict, state)

    def test_number_of_numpy(self, read, state):
        """The best mIoU is one."""
        content = dict(epoch=3, best_mIoU=np.float64(0.8), state_dict=state)
        assert_same(read(content).state_dict, state)

    def test_release_of_2020(self, read, state, copies):
        found = read({**copies, **state})
        assert_same(found.state_dict, state)
        assert found.release == '2020'
        expected = {'fullstage_copy.': 1, 'deq.func.': 1, 'deq.func_copy.': 1}
        assert found.dropped == expected

    def test_copies_that_contradict(self, read, state, copies):
        copies['deq.func.branches.0.blocks.0.gn1.weight'] = torch.rand(3)
        with pytest.raises(ValueError, match='contradicts .* deq.func.branches.0'):
            read({**state, **copies})

    def test_copies_without_the_original(self, read, copies):
        with pytest.raises(ValueError, match='contradicts .* deq.func.branches.0'):
            read(copies)

    def test_a_key_with_and_without_prefix(self, read, state):
        with pytest.raises(
            ValueError, match='more than one tensor for stage0.0.weight'
        ):
            read({**state, 'module.stage0.0.weight': torch.rand(1)})


class TestRefused:
    """Nothing is run, and the message says why."""

    @pytest.mark.parametrize('zipped', [True, False])
    @pytest.mark.parametrize('nested', [True, False])
    def test_code(self, read, state, tmp_path, zipped, nested):
        trapped = {**state, 'trap': Trap(tmp_path / 'ran')}
        content = dict(state_dict=trapped) if nested else trapped
        refused = (
            f'refused and nothing in it was run: .* asks for {os.system.__module__}'
        )
        with pytest.raises(ValueError, match=refused):
            read(content, _use_new_zipfile_serialization=zipped)
        assert not (tmp_path / 'ran').exists()

    @pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
    def test_bare_pickle(self, tmp_path, protocol):
        path = tmp_path / 'official.pkl'
        path.write_bytes(pickle.dumps(Trap(tmp_path / 'ran'), protocol))
        with pytest.raises(ValueError, match='official.pkl .* nothing in it was run'):
            read_official_checkpoint(path)
        assert not (tmp_path / 'ran').exists()

    def test_what_mmengine_is_allowed_opens_no_door(self, read, tmp_path):
        """``getattr`` is, for log histories; with it one could reach anything."""

        class Reach:
            def __reduce__(self):
                return getattr, (OrderedDict, 'fromkeys')

        for content in (Reach(), [HistoryBuffer(), Trap(tmp_path / 'ran')]):
            with pytest.raises(ValueError, match='nothing in it was run'):
                read(content)
        assert not (tmp_path / 'ran').exists()

    def test_torchscript(self, tmp_path):
        """Old versions of torch run it in spite of ``weights_only``."""
        path = tmp_path / 'official.pkl'
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
        with pytest.raises(ValueError, match='refused .* a TorchScript archive'):
            read_official_checkpoint(path)

    def test_tar(self, tmp_path):
        path = tmp_path / 'official.pth.tar'
        with tarfile.open(path, 'w') as archive:
            archive.add(__file__, 'storages')
        with pytest.raises(ValueError, match='refused .* a tar'):
            read_official_checkpoint(path)


class TestNoCheckpoint:
    @pytest.mark.parametrize('zipped', [True, False])
    @pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 0.95])
    def test_truncated(self, read, state, tmp_path, zipped, share):
        read(state, _use_new_zipfile_serialization=zipped)
        path = tmp_path / 'official.pkl'
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r'official.pkl is truncated, or is not'):
            read_official_checkpoint(path)

    @pytest.mark.parametrize('text', ['some words\n', '{"state_dict": {}}', 'MDEQ'])
    def test_text(self, tmp_path, text):
        path = tmp_path / 'notes.txt'
        path.write_text(text)
        with pytest.raises(ValueError, match='notes.txt is truncated, or is not'):
            read_official_checkpoint(path)

    def test_directory(self, tmp_path):
        with pytest.raises(ValueError, match='is a directory'):
            read_official_checkpoint(tmp_path)

    def test_absent(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='absent.pkl'):
            read_official_checkpoint(tmp_path / 'absent.pkl')

    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (torch.zeros(2), 'expected a dict of tensors by name, .* got Tensor'),
            ([torch.zeros(2)], 'got list'),
            ({}, 'an empty state dict'),
            (dict(epoch=3, model='mdeq'), 'no tensors are epoch, model'),
            ({1: torch.zeros(2)}, 'expected a dict of tensors by name'),
            (
                {f'part{i}': 'text' for i in range(9)},
                'part0, part1, part2, part3, part4 and 4 more',
            ),
            (
                dict(meta={}, state_dict={'backbone.stem.weight': torch.zeros(2)}),
                'names of the toolboxes already, .* backbone.stem.weight',
            ),
        ],
    )
    def test_other_content(self, read, content, message):
        with pytest.raises(ValueError, match=message):
            read(content)
