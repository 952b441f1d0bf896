"""What the options of the tool make of a config; integration tests train."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mdeq_mm.checkpoints import Position
from mdeq_mm.engine import StrictLoadingHook

from ..checkpoints import hostile

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


class Runner:
    """Takes the place of the runner."""

    def __init__(self):
        self.cfg = None
        self.n_trainings = 0
        self.hooks = []
        self.messages = []
        self.logger = SimpleNamespace(info=self.say)

    def say(self, text, *args):
        self.messages.append(text % args)

    def register_hook(self, hook):
        self.hooks.append(hook)

    def __call__(self, cfg):
        self.cfg = cfg
        return self

    def train(self):
        self.n_trainings += 1


@pytest.fixture
def train(load_tool, root, monkeypatch):
    """Runs the tool up to the training; returns the config of the runner."""
    tool = load_tool('train.py')

    def run(*options, config=root / CONFIG):
        run.runner = runner = Runner()
        monkeypatch.setattr(tool, 'build_runner', runner)
        tool.main([str(config), *options])
        assert runner.n_trainings == 1
        return runner.cfg

    run.tool = tool
    return run


def test_plain(train):
    cfg = train()
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert not cfg.auto_scale_lr.get('enable', False)
    assert not cfg.get('resume')
    assert cfg.work_dir == 'work_dirs/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64'


def test_amp(train):
    cfg = train('--amp')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg = train('--amp', '--cfg-options', 'optim_wrapper.loss_scale=512')
    assert cfg.optim_wrapper.loss_scale == 512


def test_auto_scale_lr(train, tmp_path):
    assert train('--auto-scale-lr').auto_scale_lr.enable
    (tmp_path / 'config.py').write_text("default_scope = 'mmseg'\n")
    with pytest.raises(ValueError, match=r'needs auto_scale_lr.base_batch_size in'):
        train('--auto-scale-lr', config=tmp_path / 'config.py')


def training(iteration):
    """What mmengine puts into a checkpoint."""
    return dict(
        state_dict={'w': torch.zeros(1)},
        meta=dict(iter=iteration, epoch=0),
        message_hub=dict(),
        optimizer=dict(),
    )


class TestResume:
    @pytest.fixture(autouse=True)
    def _checkpoints(self, tmp_path):
        (tmp_path / 'run').mkdir()
        for iteration in (3, 6):
            torch.save(training(iteration), tmp_path / f'run/iter_{iteration}.pth')
        (tmp_path / 'run/last_checkpoint').touch()

    @pytest.mark.parametrize(
        ('options', 'load_from'),
        [
            (['--resume'], 'run/iter_6.pth'),
            (['--resume', 'run/iter_3.pth'], 'run/iter_3.pth'),
            (['--cfg-options', 'resume=True'], 'run/iter_6.pth'),
            (['--cfg-options', 'resume=run/iter_3.pth'], 'run/iter_3.pth'),
            (
                ['--cfg-options', 'resume=True', 'load_from=run/iter_3.pth'],
                'run/iter_3.pth',
            ),
            (['--resume', '--cfg-options', 'load_from=a.pth'], 'run/iter_6.pth'),
        ],
    )
    def test_from(self, train, options, load_from):
        cfg = train('--work-dir', 'run', *options)
        assert cfg.resume is True
        assert cfg.load_from == load_from
        (hook,) = train.runner.hooks
        assert isinstance(hook, StrictLoadingHook)
        assert hook.name == load_from
        messages = train.runner.messages
        assert any(f'resuming from {load_from}' in text for text in messages)

    @pytest.mark.parametrize('load_from', [None, 'pretrained.pth'])
    def test_nothing_there(self, train, load_from):
        """It starts as it would without the option."""
        cfg = train('--resume', '--cfg-options', f'load_from={load_from}')
        assert cfg.resume is False
        assert cfg.load_from == load_from
        assert train.runner.hooks == []
        expected = 'no whole checkpoint found: starting anew'
        assert train.runner.messages == [expected]

    def test_other_folder_for_checkpoints(self, train, tmp_path):
        (tmp_path / 'out').mkdir()
        (tmp_path / 'run').rename(tmp_path / 'out/run')
        option = f'default_hooks.checkpoint.out_dir={tmp_path / "out"}'
        cfg = train('--work-dir', 'logs/run', '--resume', '--cfg-options', option)
        assert cfg.load_from == str(tmp_path / 'out/run/iter_6.pth')

    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (None, 'there is no checkpoint b.pth'),
            (
                dict(state_dict={}),
                'b.pth is no checkpoint to resume from, it lacks meta',
            ),
            (hostile.makes('harm'), 'b.pth is refused and nothing in it was run'),
        ],
    )
    def test_file_that_is_none(self, train, content, message):
        """Before anything else: no runner, no work directory."""
        if content is not None:
            torch.save(content, 'b.pth')
        for options in (['--resume', 'b.pth'], ['--cfg-options', 'resume=b.pth']):
            with pytest.raises((FileNotFoundError, ValueError), match=message):
                train(*options, '--work-dir', 'new')
            assert not Path('new').exists()
            assert not Path('harm').exists()
            assert train.runner.cfg is None

    def test_processes_that_see_different_files(self, train, monkeypatch):
        launch = sys.modules[train.tool.check_start.__module__]
        other = ('iter_3.pth', Position(3, 0))
        monkeypatch.setattr(launch, 'all_gather_object', lambda mine: [mine, other])
        with pytest.raises(ValueError, match='must resume from the same checkpoint'):
            train('--work-dir', 'run', '--resume')
        assert train.runner.n_trainings == 0
