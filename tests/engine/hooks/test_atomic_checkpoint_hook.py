"""A file under a final name is whole, whatever happens while it is written."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import METRICS

from mdeq_mm.checkpoints import load_from_local
from mdeq_mm.engine.hooks import atomic_checkpoint_hook

pytestmark = pytest.mark.versions
ATOMIC = dict(type='AtomicCheckpointHook', interval=1)


@METRICS.register_module(force=True)
class Falling(BaseMetric):
    """Is lower in every validation."""

    value = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.value -= 1
        return dict(mean=self.value)


@METRICS.register_module(force=True)
class Rising(Falling):
    """Is higher in every validation."""

    def compute_metrics(self, results):
        return dict(mean=-super().compute_metrics(results)['mean'])


@pytest.fixture
def full_disk(monkeypatch):
    """Lets the disk be full in the middle of the n-th checkpoint and from then on."""
    write = LocalBackend.put

    def full_at(n):
        written = []

        def put(self, obj, filepath):
            written.append(filepath)
            if len(written) < n:
                write(self, obj, filepath)
            else:
                write(self, obj[: len(obj) // 2], filepath)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(filepath))

        monkeypatch.setattr(LocalBackend, 'put', put)

    return full_at


def files(folder):
    """Checkpoints and what else is no log."""
    names = {path.name for path in Path(folder).iterdir()}
    return {name for name in names if not name.startswith('20')}


def whole(folder):
    """Names of the checkpoints, all of which can be loaded."""
    paths = sorted(Path(folder).glob('*.pth'))
    for path in paths:
        assert load_from_local(path)['state_dict']
    return [path.name for path in paths]


def last(folder):
    return Path((Path(folder) / 'last_checkpoint').read_text()).name


class TestWhatIsSaved:
    def test_as_the_stock_hook(self, make_runner):
        """The same files with the same content, but the times."""
        saved = {}
        for kind in ('CheckpointHook', 'AtomicCheckpointHook'):
            runner = make_runner([], length=4, checkpoint=dict(ATOMIC, type=kind))
            runner.train()
            folder = Path(runner.work_dir)
            content = torch.load(folder / 'iter_4.pth', map_location='cpu')
            saved[kind] = files(folder), last(folder), content
            for path in folder.glob('*'):
                if path.is_file():
                    path.unlink()
        stock, ours = saved.values()
        assert ours[:2] == stock[:2]
        assert ours[0] == {f'iter_{i}.pth' for i in range(1, 5)} | {'last_checkpoint'}
        assert ours[2].keys() == stock[2].keys()
        for key, tensor in ours[2]['state_dict'].items():
            assert torch.equal(tensor, stock[2]['state_dict'][key])
        assert ours[2]['meta']['iter'] == stock[2]['meta']['iter'] == 4

    @pytest.mark.parametrize('by_epoch', [False, True])
    def test_best_and_few(self, make_runner, by_epoch):
        runner = make_runner(
            [],
            length=3 if by_epoch else 6,
            by_epoch=by_epoch,
            checkpoint=dict(ATOMIC, max_keep_ckpts=2, save_best='mean', rule='greater'),
        )
        runner.train()
        found = files(runner.work_dir)
        assert len([name for name in found if name.startswith('best_mean_')]) == 1
        numbered = {'epoch_2.pth', 'epoch_3.pth', 'iter_5.pth', 'iter_6.pth'}
        assert len(found & numbered) == 2
        assert len(found) == 4
        assert last(runner.work_dir) == ('epoch_3.pth' if by_epoch else 'iter_6.pth')
        whole(runner.work_dir)

    @pytest.mark.parametrize('settings', [{}, dict(out_dir='relative')])
    def test_the_same_name_again(self, make_runner, tmp_path, monkeypatch, settings):
        """What is written anew is not removed as an old one."""
        monkeypatch.chdir(tmp_path)
        checkpoint = dict(
            ATOMIC,
            filename_tmpl='latest.pth',
            max_keep_ckpts=1,
            save_best='mean',
            rule='greater',
            **settings,
        )
        runner = make_runner(
            [], length=6, checkpoint=checkpoint, val_evaluator=dict(type='Rising')
        )
        runner.train()
        folder = Path('relative/work_dir' if settings else 'work_dir')
        assert whole(folder) == ['best_mean_latest.pth', 'latest.pth']
        for name in ('best_mean_latest.pth', 'latest.pth'):
            assert load_from_local(folder / name)['meta']['iter'] == 6

    def test_folder_in_the_name(self, make_runner):
        checkpoint = dict(ATOMIC, filename_tmpl='sub/iter_{}.pth', max_keep_ckpts=1)
        runner = make_runner([], length=2, checkpoint=checkpoint)
        runner.train()
        assert files(runner.work_dir) == {'last_checkpoint', 'sub'}
        assert whole(Path(runner.work_dir, 'sub')) == ['iter_2.pth']
        assert last(runner.work_dir) == 'iter_2.pth'

    def test_other_folder(self, make_runner, tmp_path):
        checkpoint = dict(ATOMIC, out_dir=str(tmp_path / 'out'))
        runner = make_runner([], length=2, checkpoint=checkpoint)
        runner.train()
        assert files(tmp_path / 'out/work_dir') == {'iter_1.pth', 'iter_2.pth'}
        assert files(runner.work_dir) == {'last_checkpoint'}
        named = Path(runner.work_dir, 'last_checkpoint').read_text()
        assert named == str(tmp_path / 'out/work_dir/iter_2.pth')

    def test_validation_alone(self, make_runner):
        runner = make_runner([], checkpoint=dict(ATOMIC, save_best='mean', rule='less'))
        hook = next(h for h in runner.hooks if type(h).__name__ == ATOMIC['type'])
        hook.save_best = None
        runner.val()
        assert files(runner.work_dir) == set()

    def test_backend_that_is_not_local(self, make_runner):
        """Nothing can be renamed there: it gets the files under their own names."""
        put = []

        class Elsewhere(LocalBackend):
            def put(self, obj, filepath):
                put.append(filepath)

        register_backend('elsewhere', Elsewhere, force=True)
        checkpoint = dict(ATOMIC, backend_args=dict(backend='elsewhere'))
        runner = make_runner([], length=2, checkpoint=checkpoint)
        runner.train()
        assert [Path(path).parent for path in put] == [Path(runner.work_dir)] * 2


class TestFullDisk:
    @pytest.mark.parametrize('n', [1, 2, 4])
    @pytest.mark.parametrize('settings', [{}, dict(max_keep_ckpts=1)])
    def test_checkpoint(self, make_runner, full_disk, n, settings):
        runner = make_runner([], length=5, checkpoint=dict(ATOMIC, **settings))
        full_disk(n)
        with pytest.raises(OSError, match='No space left'):
            runner.train()
        kept = [f'iter_{i}.pth' for i in range(1, n)]
        kept = kept[-1:] if settings else kept
        assert whole(runner.work_dir) == kept
        assert files(runner.work_dir) == {*kept, *(['last_checkpoint'] if kept else [])}
        if kept:
            assert last(runner.work_dir) == kept[-1]

    def test_the_stock_hook_leaves_a_torn_file(self, make_runner, full_disk):
        """What this hook is for."""
        runner = make_runner([], length=5, checkpoint=dict(interval=1))
        full_disk(2)
        with pytest.raises(OSError, match='No space left'):
            runner.train()
        with pytest.raises(ValueError, match='iter_2.pth is truncated'):
            whole(runner.work_dir)

    def test_best(self, make_runner, full_disk):
        """The best one so far is kept if its successor cannot be saved."""
        settings = dict(interval=9, save_best='mean', rule='less', save_last=False)
        metric = dict(type='Falling')
        runner = make_runner(
            [], length=6, checkpoint=dict(ATOMIC, **settings), val_evaluator=metric
        )
        full_disk(2)
        with pytest.raises(OSError, match='No space left'):
            runner.train()
        assert whole(runner.work_dir) == ['best_mean_iter_3.pth']

    def test_last_checkpoint(self, make_runner, monkeypatch):
        """It is written by the stock hook, in place, and fails here."""
        runner = make_runner([], length=4, checkpoint=ATOMIC)
        publish = atomic_checkpoint_hook._publish

        def fail(unfinished, final):
            if (
                final.name == 'last_checkpoint'
                and Path(final.parent, 'iter_3.pth').exists()
            ):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            publish(unfinished, final)

        monkeypatch.setattr(atomic_checkpoint_hook, '_publish', fail)
        with pytest.raises(OSError, match='No space left'):
            runner.train()
        assert last(runner.work_dir) == 'iter_2.pth'
        assert whole(runner.work_dir) == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth']
        assert '.unfinished' not in files(runner.work_dir)

    def test_limit_of_the_system(self, make_runner):
        """A write that the kernel refuses in the middle of a file."""
        runner = make_runner([], length=3, checkpoint=ATOMIC)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            with pytest.raises(OSError, match='File too large'):
                runner.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert files(runner.work_dir) == set()


def test_synced_before_it_has_its_name(make_runner, monkeypatch):
    """After a power cut the name may be there and the content not, else."""
    events = []
    sync, replace = os.fsync, Path.replace

    def record_sync(descriptor):
        events.append(('sync', Path(f'/proc/self/fd/{descriptor}').readlink().name))
        sync(descriptor)

    def record_replace(path, target):
        events.append(('name', path.name))
        return replace(path, target)

    monkeypatch.setattr(os, 'fsync', record_sync)
    monkeypatch.setattr(Path, 'replace', record_replace)
    make_runner([], length=1, checkpoint=ATOMIC).train()
    assert events == [
        *[('sync', 'iter_1.pth'), ('name', 'iter_1.pth'), ('sync', 'work_dir')],
        *[('sync', 'last_checkpoint'), ('name', 'last_checkpoint')],
        ('sync', 'work_dir'),
    ]


KILLED = """
import os, signal
from mmengine.fileio import LocalBackend

put = LocalBackend.put


def put_half(self, obj, filepath):
    if 'iter_3.pth' in str(filepath):
        put(self, obj[: len(obj) // 2], filepath)
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, obj, filepath)


LocalBackend.put = put_half
"""


def test_killed_while_saving(make_runner, tmp_path):
    """What the killed run has left behind is gone when the next one starts."""
    child = os.fork()
    if child == 0:
        try:
            exec(KILLED, {})
            make_runner([], length=4, checkpoint=dict(ATOMIC, max_keep_ckpts=1)).train()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    folder = tmp_path / 'work_dir'
    assert whole(folder) == ['iter_2.pth']
    assert last(folder) == 'iter_2.pth'
    assert [path.name for path in (folder / '.unfinished').iterdir()] == ['iter_3.pth']
    runner = make_runner(
        [], length=4, checkpoint=dict(ATOMIC, max_keep_ckpts=1), resume=True
    )
    runner.train()
    assert files(folder) == {'iter_4.pth', 'last_checkpoint'}
