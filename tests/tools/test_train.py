"""What the options of the tool make of a config; integration tests train."""

import pytest

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


class Runner:
    """Takes the place of the runner."""

    def __init__(self):
        self.cfg = None
        self.n_trainings = 0

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
        runner = Runner()
        monkeypatch.setattr(tool, 'build_runner', runner)
        tool.main([str(config), *options])
        assert runner.n_trainings == 1
        return runner.cfg

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


@pytest.mark.parametrize(
    ('options', 'load_from'), [(['--resume'], None), (['--resume', 'a.pth'], 'a.pth')]
)
def test_resume(train, options, load_from):
    cfg = train(*options)
    assert cfg.resume
    assert cfg.load_from == load_from
