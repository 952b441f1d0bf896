"""What the options of the tool make of a config; integration tests evaluate."""

from types import SimpleNamespace

import pytest

from mdeq_mm.engine import StrictLoadingHook

SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CITYSCAPES = 'configs/segmentation/fcn_mdeq-small_4xb3-500e_cityscapes-512x1024.py'
MULTITASK = 'configs/multitask/mdeq-micro_1xb64-1xb8-1200_digits-digit-scenes.py'
CLASSIFIER = 'configs/classification/mdeq-tiny_1xb64_digits.py'


class Runner:
    """Takes the place of the runner."""

    def __init__(self):
        self.cfg = None
        self.n_tests = 0
        self.hooks = []
        self.test_evaluator = SimpleNamespace(metrics=[])

    def __call__(self, cfg):
        self.cfg = cfg
        return self

    def register_hook(self, hook):
        self.hooks.append(hook)

    def test(self):
        self.n_tests += 1


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('test.py')


@pytest.fixture
def evaluate(tool, root, monkeypatch):
    """Runs the tool up to the evaluation; returns the runner."""

    def run(*options, config=SEGMENTOR):
        runner = Runner()
        monkeypatch.setattr(tool, 'build_runner', runner)
        tool.main([str(root / config), 'model.pth', *map(str, options)])
        assert runner.n_tests == 1
        return runner

    return run


def test_plain(evaluate):
    runner = evaluate()
    assert runner.cfg.load_from == 'model.pth'
    assert not runner.cfg.test_cfg.get('fp16', False)
    assert runner.cfg.model.type == 'EncoderDecoder'
    assert runner.test_evaluator.metrics == []
    (hook,) = runner.hooks
    assert isinstance(hook, StrictLoadingHook)
    assert hook.name == 'model.pth'


def test_allow_partial(evaluate):
    assert evaluate('--allow-partial').hooks == []


def test_amp(evaluate):
    assert evaluate('--amp').cfg.test_cfg.fp16


def test_out(tool, evaluate, capsys):
    (metric,) = evaluate('--out', 'results.pkl').test_evaluator.metrics
    assert metric.out_file_path == 'results.pkl'
    with pytest.raises(SystemExit):
        tool.main(['config.py', 'model.pth', '--out', 'results.json'])
    assert '--out must end in .pkl or .pickle' in capsys.readouterr().err


def test_out_of_several_tasks(evaluate):
    with pytest.raises(ValueError, match='--out needs .* one task, .* digits, scenes;'):
        evaluate('--out', 'results.pkl', config=MULTITASK)
    assert evaluate(config=MULTITASK).cfg.model.type == 'MultiTaskModel'


class TestShowDir:
    def test_segmentation(self, evaluate, tmp_path):
        cfg = evaluate('--show-dir', tmp_path).cfg
        assert cfg.default_hooks.visualization.draw
        assert cfg.default_hooks.visualization.interval == 1
        assert cfg.visualizer.save_dir == str(tmp_path)

    def test_classification(self, evaluate, tmp_path):
        cfg = evaluate('--show-dir', tmp_path, config=CLASSIFIER).cfg
        assert cfg.default_hooks.visualization.enable
        assert cfg.default_hooks.visualization.out_dir == str(tmp_path)

    def test_interval_of_the_config(self, evaluate):
        options = ['--cfg-options', 'default_hooks.visualization.interval=7']
        cfg = evaluate('--show-dir', 'there', *options).cfg
        assert cfg.default_hooks.visualization.interval == 7

    @pytest.mark.parametrize(
        'option', ['default_scope=mmengine', 'default_hooks.visualization=None']
    )
    def test_nothing_paints(self, evaluate, option):
        with pytest.raises(ValueError, match='--show-dir needs the visualization hook'):
            evaluate('--show-dir', 'there', '--cfg-options', option)


class TestTta:
    def test_model_and_pipeline(self, evaluate):
        cfg = evaluate('--tta', config=CITYSCAPES).cfg
        assert cfg.model.type == 'SegTTAModel'
        assert cfg.model.module.type == 'EncoderDecoder'
        pipeline = cfg.test_dataloader.dataset.pipeline
        assert 'TestTimeAug' in [transform.type for transform in pipeline]

    def test_config_without(self, evaluate):
        with pytest.raises(ValueError, match='--tta needs tta_model and tta_pipeline'):
            evaluate('--tta', config=CLASSIFIER)
