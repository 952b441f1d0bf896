"""The tool of benchmarks, by its command line."""

import json

import pytest
import torch
from mmengine.device import get_device
from mmengine.runner import save_checkpoint
from torch import rand
from torch.utils.data import DataLoader

from mdeq_mm import apis
from mdeq_mm.benchmark import (
    Case,
    backbones,
    memory,
    own_solvers,
    solvers,
    sweep,
)

CLASSIFIER = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'
STOCK = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'
TOLS = ['0.1', '0.01', '0.001', '0.0001']
needs_torchdeq = pytest.mark.skipif(
    not solvers.has_torchdeq(), reason='torchdeq is not installed'
)
SMALL = ['model.backbone.forward_solver.max_evals=4', 'model.backbone.dropout=0']
SIZE = ['--shape', '16', '16', '--cfg-options', *SMALL]


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/benchmark.py')


@pytest.fixture
def run(tool, tmp_path, capsys):
    """Runs the tool; returns what it prints and what it reports."""
    threads = torch.get_num_threads()

    def call(*arguments):
        path = tmp_path / 'new' / 'report.json'
        tool.main([str(argument) for argument in (*arguments, '--json', path)])
        return capsys.readouterr().out, json.loads(path.read_text())

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def config(root):
    return root / CLASSIFIER


class TestSolvers:
    def test_report(self, run, config, tmp_path):
        picture = tmp_path / 'overhead.png'
        output, report = run(
            'solvers', config, '--repeats', 1, '--plot', picture, *SIZE
        )
        assert report['images'] == [2, 3, 16, 16]
        assert report['evals'] == 4
        assert report['environment']['torch'] == torch.__version__
        assert set(report['results']) == {'forward', 'adjoint'}
        for result in report['results'].values():
            names = ['PicardSolver', 'AndersonSolver', 'BroydenSolver']
            assert list(result['solvers']) == names
            for name, solver in result['solvers'].items():
                assert solver['evaluations'] == 4
                assert solver['overhead'] == pytest.approx(
                    result['rounds'][name][0] / result['rounds']['bare'][0]
                )
                assert list(solver['evaluations_to']) == TOLS
        assert 'BroydenSolver' in output
        assert picture.stat().st_size > 0

    def test_weights_and_images_of_a_checkpoint(
        self, tool, run, config, tmp_path, monkeypatch
    ):
        model = apis.build_model(apis.load_config(config))
        path = tmp_path / 'model.pth'
        save_checkpoint(dict(state_dict=model.state_dict()), str(path))
        images = 255 * rand(3, 3, 16, 16)
        measured = []

        def measure(*args, **options):
            measured.append(args)
            return {}

        def build(cfg):
            assert cfg.test_dataloader.batch_size == 3
            return DataLoader(
                list(images), batch_size=3, collate_fn=lambda x: dict(inputs=x)
            )

        monkeypatch.setattr(tool, 'measure_solvers', measure)
        monkeypatch.setattr(backbones, 'build_test_loader', build)
        options = ['--batch-size', 3, '--repeats', 1, '--evals', 25]
        _, report = run('solvers', config, '--checkpoint', path, *options)
        assert report['images'] == [3, 3, 16, 16]
        ((backbone, inputs, n_evals, repeats),) = measured
        assert (n_evals, repeats) == (25, 1)
        model.to(get_device())
        expected = model.data_preprocessor(dict(inputs=list(images)))['inputs']
        assert torch.equal(inputs, expected)
        with torch.no_grad():
            outputs = zip(backbone(inputs), model.backbone(inputs))
        assert all(torch.equal(*pair) for pair in outputs)

    def test_torchdeq_is_missing(self, tool, config, capsys, monkeypatch):
        monkeypatch.setattr(tool, 'has_torchdeq', lambda: False)
        with pytest.raises(SystemExit):
            tool.main(['solvers', str(config), '--torchdeq'])
        error = capsys.readouterr().err
        assert '--torchdeq needs the package torchdeq' in error

    @needs_torchdeq
    def test_torchdeq_evaluates_as_often(self, run, config):
        _, report = run('solvers', config, '--repeats', 1, '--torchdeq', *SIZE)
        for result in report['results'].values():
            assert len(result['solvers']) == 6
            assert {s['evaluations'] for s in result['solvers'].values()} == {4}

    def test_settings_of_the_solvers(self, run, config, monkeypatch):
        seen = []

        def record(*args):
            seen.append(args)
            return own_solvers(*args)

        monkeypatch.setattr(solvers, 'own_solvers', record)
        options = ['--memory', 2, '--history-dtype', 'bfloat16', '--repeats', 1]
        run('solvers', config, *options, *SIZE)
        run('solvers', config, '--repeats', 1, *SIZE)
        assert seen == [(4, 2, 'bfloat16'), (4, None, None)]

    def test_stock_model(self, tool, root):
        with pytest.raises(ValueError, match='solvers needs an MDEQ'):
            tool.main(['solvers', str(root / STOCK)])


class TestModels:
    def test_counts(self, run, config, tmp_path):
        picture = tmp_path / 'times.png'
        adjoint = 'model.backbone.gradient.solver.max_evals=3'
        output, report = run(
            'models',
            config,
            '--backbones',
            'resnet50',
            '--repeats',
            1,
            '--plot',
            picture,
            *(*SIZE, adjoint),
        )
        results = report['results']
        mdeq, resnet = results[config.stem], results['resnet50']
        assert report['reference'] == 'resnet50'
        assert mdeq['inference']['evaluations'] == 4
        assert mdeq['inference']['products'] == 0
        assert mdeq['training']['evaluations'] == 4 + 1
        assert mdeq['training']['products'] == 3
        assert set(resnet['training']) == {'seconds', 'rounds', 'ratio'}
        assert resnet['parameters'] == 23_508_032  # torchvision's, without fc
        assert resnet['inference']['ratio'] == resnet['training']['ratio'] == 1
        assert mdeq['training']['ratio'] == pytest.approx(
            mdeq['training']['seconds'] / resnet['training']['seconds']
        )
        assert 'MiB saved' in output
        assert picture.stat().st_size > 0

    def test_repeated_model(self, tool, config, capsys):
        with pytest.raises(SystemExit):
            tool.main(['models', str(config), str(config)])
        assert 'models must have different names' in capsys.readouterr().err


class TestMemory:
    def test_report(self, run, config, monkeypatch):
        calls = []

        def measure(subject, case, shape, device):
            calls.append((subject.label, case, shape))
            return 2**20 * len(calls)

        monkeypatch.setattr(memory, 'measure_in_process', measure)
        stock = ['--backbones', 'resnet50']
        output, report = run('memory', config, *stock, '--repeats', 3, *SIZE)
        cases = [(config.stem, case) for case in Case]
        cases += [('resnet50', Case.INFERENCE), ('resnet50', Case.TRAINING)]
        assert calls == [(*case, [2, 3, 16, 16]) for case in cases] * 3
        rounds = report['results']['resnet50']['training step']['rounds']
        assert rounds == [6 * 2**20, 12 * 2**20, 18 * 2**20]
        assert report['results'][config.stem]['inference']['bytes'] == 8 * 2**20
        assert '12.0 MiB' in output


class TestSweep:
    def test_report(self, run, config):
        grid = ['--memory', 2, 4, '--window', 3, '--ridge', 0, 1e-4, '--mixing', 1]
        output, report = run('sweep', config, *grid, '--damping', 0.5, *SIZE)
        names = {
            'BroydenSolver(memory=2)',
            'BroydenSolver(memory=4)',
            'AndersonSolver(window=3, ridge=0, mixing=1)',
            'AndersonSolver(window=3, ridge=0.0001, mixing=1)',
            'PicardSolver(damping=0.5)',
        }
        assert set(report['results']) == {'forward', 'adjoint'}
        for rows in report['results'].values():
            assert {row['solver'] for row in rows} == names
            for row in rows:
                assert list(row['evaluations_to']) == TOLS
        assert all(output.count(name) == 2 for name in names)

    @pytest.mark.parametrize('amp', [False, True])
    def test_amp(self, tool, run, config, monkeypatch, amp):
        seen = []

        def measure(backbone, *args):
            conv = backbone.equilibrium.cell.branches[0][0].conv1
            conv.register_forward_hook(lambda *args: seen.append(args[2].dtype))
            return sweep(backbone, *args)

        monkeypatch.setattr(tool, 'sweep', measure)
        grid = ['--memory', 2, '--window', 1, '--ridge', 0, '--mixing', 1]
        option = ['--amp'] if amp else []
        run('sweep', config, *grid, '--damping', 1, *option, *SIZE)
        assert set(seen) == {torch.bfloat16 if amp else torch.float32}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['solvers', 'c.py', '--evals', '2'], '--evals: must be at least 3, got 2'),
        (['models', 'c.py', '--repeats', '0'], 'must be at least 1, got 0'),
        (['memory', 'c.py', '--shape', '0', '3'], 'must be at least 1, got 0'),
        (['models', 'c.py', '--backbones', 'vgg'], "invalid choice: 'vgg'"),
        ([], 'the following arguments are required: command'),
    ],
)
def test_bad_arguments(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
