"""Which checkpoint a training goes on from."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mdeq_mm.checkpoints import Position, check_training_checkpoint, find_newest

from . import hostile

pytestmark = pytest.mark.versions


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / 'work_dir'
    path.mkdir()
    return path


def training(iteration, epoch=0):
    """What mmengine puts into a checkpoint."""
    return dict(
        state_dict={'w': torch.zeros(50)},
        meta=dict(iter=iteration, epoch=epoch),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))),
        optimizer=dict(state={}),
    )


def save(folder, *iterations):
    for iteration in iterations:
        torch.save(training(iteration), folder / f'iter_{iteration}.pth')


def name_last(folder, text):
    (folder / 'last_checkpoint').write_text(str(text))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b'')


def zeros(path):
    """What some file systems show of a file that was not yet on the disk."""
    path.write_bytes(b'\0' * path.stat().st_size)


def weights_only(path):
    torch.save(dict(state_dict={'w': torch.zeros(1)}), path)


def unreadable(path):
    path.unlink()
    path.symlink_to('nowhere.pth')


def hostile_file(path):
    torch.save(hostile.in_meta(hostile.makes(path.parent / 'harm')), path)


DAMAGES = [truncated, empty, zeros, weights_only, unreadable, hostile_file]


class TestNewest:
    @pytest.mark.parametrize('name', ['latest.pth', 'latest.pt', 'sub/latest.pth'])
    def test_a_name_without_a_number(self, folder, name):
        """As filename_tmpl may make them: last_checkpoint alone tells which it is."""
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        torch.save(training(4), path)
        torch.save(training(9), folder / 'other.pth')
        name_last(folder, path)
        assert find_newest([folder]).path == str(path)
        save(folder, 8)
        assert find_newest([folder]).path == str(folder / 'iter_8.pth')

    @pytest.mark.parametrize(
        'last',
        [None, '', '\0\0\0', '{}/iter_4.pth', '{}/iter_12.pth', '/gone/iter_8.pth'],
    )
    def test_whatever_last_checkpoint_says(self, folder, last):
        """It may be missing, empty, older, or name a folder that was moved."""
        save(folder, 4, 12, 8)
        if last is not None:
            name_last(folder, last.format(folder))
        newest = find_newest([folder])
        assert newest.path == str(folder / 'iter_12.pth')
        assert newest.position == Position(12, 0)
        expected = ['it is empty'] if last in ('', '\0\0\0') else []
        assert list(newest.skipped.values()) == expected

    def test_last_checkpoint_of_garbage(self, folder):
        """No file system takes so long a name, and nobody wants to read it."""
        save(folder, 4)
        name_last(folder, 'x' * 1_000_000)
        newest = find_newest([folder])
        assert newest.path == str(folder / 'iter_4.pth')
        (why,) = newest.skipped.values()
        assert why == f'it names {"x" * 100}..., which does not exist'

    @pytest.mark.parametrize('damage', DAMAGES)
    def test_damaged(self, folder, damage):
        save(folder, 4, 8, 12)
        name_last(folder, folder / 'iter_12.pth')
        damage(folder / 'iter_12.pth')
        newest = find_newest([folder])
        assert newest.path == str(folder / 'iter_8.pth')
        (why,) = newest.skipped.values()
        assert 'iter_12.pth' in why
        text = str(newest)
        assert text.startswith(f'resuming from {folder}/iter_8.pth\n')
        assert f'skipped {folder}/iter_12.pth: {why}' in text
        assert not (folder / 'harm').exists()

    @pytest.mark.parametrize('damage', [d for d in DAMAGES if d is not weights_only])
    def test_all_damaged(self, folder, damage):
        save(folder, 4, 8)
        for path in folder.glob('*.pth'):
            damage(path)
        newest = find_newest([folder])
        assert (newest.path, newest.position, len(newest.skipped)) == (None, None, 2)
        assert str(newest).startswith(
            'no whole checkpoint found: starting anew\nskipped'
        )

    def test_weights_alone_are_not_overwritten(self, folder):
        """As a run with save_optimizer=False leaves them."""
        save(folder, 10)
        weights_only(folder / 'iter_20.pth')
        assert find_newest([folder]).path == str(folder / 'iter_10.pth')
        truncated(folder / 'iter_10.pth')
        with pytest.raises(ValueError, match=r'iter_20\.pth .* lacks .*load_from'):
            find_newest([folder])

    def test_nothing_there(self, folder):
        for path in (folder, folder / 'absent'):
            assert (
                str(find_newest([path])) == 'no whole checkpoint found: starting anew'
            )
        name_last(folder, '/gone/iter_8.pth')
        newest = find_newest([folder])
        assert newest.path is None
        assert newest.skipped == {
            folder
            / 'last_checkpoint': 'it names /gone/iter_8.pth, which does not exist'
        }

    def test_numbers_and_not_names_or_times(self, folder):
        save(folder, 9, 10, 100, 20)
        os.utime(folder / 'iter_9.pth', (2e9, 2e9))
        assert find_newest([folder]).position == Position(100, 0)

    def test_epochs_and_iterations(self, folder):
        save(folder, 40, 90)
        torch.save(training(84, 4), folder / 'epoch_4.pth')
        assert find_newest([folder]).path == str(folder / 'iter_90.pth')
        torch.save(training(105, 5), folder / 'epoch_5.pth')
        assert find_newest([folder]).path == str(folder / 'epoch_5.pth')

    def test_others(self, folder):
        """The best ones hold weights alone; unfinished ones are not looked at."""
        save(folder, 4)
        torch.save(training(99), folder / 'best_mIoU_iter_99.pth')
        torch.save(training(99), folder / 'weights.pth')
        (folder / '.unfinished').mkdir()
        save(folder / '.unfinished', 99)
        newest = find_newest([folder])
        assert newest.path == str(folder / 'iter_4.pth')
        assert newest.skipped == {}

    def test_folder_that_was_moved_and_one_that_was_copied(self, folder, tmp_path):
        save(folder, 4, 8)
        name_last(folder, folder / 'iter_8.pth')
        copy = tmp_path / 'copy'
        shutil.copytree(folder, copy)
        assert find_newest([copy]).path == str(copy / 'iter_8.pth')
        shutil.rmtree(folder)
        assert find_newest([copy]).path == str(copy / 'iter_8.pth')

    def test_two_folders(self, folder, tmp_path):
        """Checkpoints may go elsewhere than logs."""
        elsewhere = tmp_path / 'elsewhere'
        elsewhere.mkdir()
        save(elsewhere, 4, 8)
        name_last(folder, elsewhere / 'iter_8.pth')
        for folders in ([folder], [folder, elsewhere]):
            assert find_newest(folders).path == str(elsewhere / 'iter_8.pth')

    def test_folder_of_a_strategy(self, folder):
        """Only the strategy can read it."""
        save(folder, 4)
        (folder / 'iter_8.pth').mkdir()
        newest = find_newest([folder])
        assert newest.path == str(folder / 'iter_4.pth')
        (why,) = newest.skipped.values()
        assert why == f'{folder}/iter_8.pth is an empty folder'
        (folder / 'iter_8.pth/shard').touch()
        assert find_newest([folder]).path == str(folder / 'iter_8.pth')


class TestTrainingCheckpoint:
    def test_whole(self, folder):
        save(folder, 3)
        assert check_training_checkpoint(folder / 'iter_3.pth') == Position(3, 0)

    @pytest.mark.parametrize(
        ('content', 'lacking'),
        [
            ({'w': torch.zeros(1)}, 'state_dict, meta, message_hub, optimizer'),
            (dict(state_dict={}), 'meta, message_hub, optimizer'),
            ({**training(3), 'optimizer': None}, 'optimizer'),
            ({**training(3), 'meta': dict(epoch=1)}, 'meta.iter'),
            (
                {**training(3), 'meta': dict(iter='3', epoch=1.0)},
                'meta.iter, meta.epoch',
            ),
            ([1, 2], 'state_dict, meta, message_hub, optimizer'),
            (torch.zeros(1), 'state_dict, meta, message_hub, optimizer'),
        ],
    )
    def test_less(self, tmp_path, content, lacking):
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(
            ValueError, match=f'resume from, it lacks {lacking}; to start'
        ):
            check_training_checkpoint(str(tmp_path / 'a.pth'))

    def test_absent(self):
        with pytest.raises(
            FileNotFoundError, match='there is no checkpoint absent.pth'
        ):
            check_training_checkpoint(Path('absent.pth'))
