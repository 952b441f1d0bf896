import json
import math
import os
import sys
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from torch import nn, rand

from mdeq_mm.benchmark import (
    Case,
    Grid,
    Problem,
    Subject,
    evaluations_to,
    measure_models,
    memory,
    residuals,
    solvers,
    sweep,
)
from mdeq_mm.benchmark.problems import at_equilibrium
from mdeq_mm.deq import BroydenSolver, PicardSolver
from mdeq_mm.deq.solvers.history import allocate
from mdeq_mm.utils.launch import build_model

CLASSIFIER = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'
STOCK = 'configs/segmentation/fcn_r18-d8-scratch_1xb4-1500_camvid-192x256.py'
TOLS = ('0.01', '0.001', '0.0001')
needs_torchdeq = pytest.mark.skipif(
    find_spec('torchdeq') is None, reason='torchdeq is not installed'
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
                assert set(solver['evaluations_to']) == {
                    '0.1',
                    '0.01',
                    '0.001',
                    '0.0001',
                }
        assert 'BroydenSolver' in output
        assert picture.stat().st_size > 0

    def test_weights_and_images_of_a_checkpoint(
        self, tool, run, config, tmp_path, calm, monkeypatch
    ):
        model = calm(build_model(Config.fromfile(config)))
        path = tmp_path / 'calm.pth'
        save_checkpoint(dict(state_dict=model.state_dict()), str(path))
        images = rand(3, 3, 16, 16)
        seen = []
        model.data_preprocessor.forward = lambda batch: dict(inputs=batch)

        def load(cfg, checkpoint):
            seen.append((cfg.test_dataloader.batch_size, checkpoint))
            return model, [images]

        monkeypatch.setattr(tool, 'load_model', load)
        _, report = run(
            'solvers', config, '--checkpoint', path, '--repeats', 1, '--evals', 25
        )
        assert seen == [(2, str(path))]
        assert report['images'] == [3, 3, 16, 16]
        found = report['results']['forward']['solvers']['BroydenSolver']
        solutions = []
        layer = model.backbone.equilibrium
        layer.solver = BroydenSolver(25, tol=0)
        layer.register_forward_hook(lambda *args: solutions.append(args[2][1]))
        with torch.no_grad():
            model.backbone(images)
        numbers = evaluations_to(solutions[0].trace, 0.1)
        assert 1 < max(numbers) < 25
        assert found['evaluations'] == 25
        assert found['evaluations_to']['0.1'] == max(numbers)

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

    @pytest.mark.parametrize('memory', [None, 2])
    def test_memory(self, run, config, monkeypatch, memory):
        seen = set()
        solve = BroydenSolver.solve

        def record(solver, f, start, **options):
            seen.add(solver.memory)
            return solve(solver, f, start, **options)

        monkeypatch.setattr(BroydenSolver, 'solve', record)
        option = [] if memory is None else ['--memory', memory]
        run('solvers', config, '--repeats', 1, *option, *SIZE)
        default = BroydenSolver().memory  # that of the config's solver as well
        assert seen == {default, memory or default}

    @needs_torchdeq
    def test_torchdeq_with_as_little_memory(self):
        matrix = torch.randn(40, 40) / 8
        x = torch.randn(2, 40)

        def count(memory):
            solve = solvers.torchdeq_solvers(60, memory)['torchdeq broyden']
            problem = Problem(lambda z: torch.tanh(z @ matrix) + x, 0 * x, None)
            return max(evaluations_to(residuals(solve, problem), 1e-5))

        assert count(2) > count(None)

    def test_stock_model(self, tool, root):
        with pytest.raises(ValueError, match='solvers needs an MDEQ'):
            tool.main(['solvers', str(root / STOCK)])


class TestProblems:
    def test_adjoint_is_that_of_the_cell(self, config, calm):
        backbone = calm(Subject(str(config)).build()).double().eval()
        images = rand(2, 3, 8, 8, dtype=torch.float64)

        solver = BroydenSolver(100, 1e-9, memory=100)
        backbone.equilibrium.solver = solver

        def check(problems):
            forward, adjoint = problems['forward'], problems['adjoint']
            z = solver.solve(forward.f, forward.start).state
            solution = solver.solve(adjoint.f, adjoint.start)
            assert solution.converged.all()
            y, unit = solution.state, adjoint.start
            # y = J^T y + u, so y.(v - J v) = u.v; J v is taken from differences of f.
            v = 1e-5 * torch.randn_like(z)
            jv = (forward.f(z + v) - forward.f(z - v)) / 2
            torch.testing.assert_close((y * (v - jv)).sum(1), (unit * v).sum(1))
            return forward.bare().shape, adjoint.bare().shape

        shapes = at_equilibrium(backbone, images, check)
        assert shapes == ((2, 24 * 64 + 24 * 16),) * 2

    def test_residuals_of_a_known_iteration(self):
        # z_k = 1 - 2^-k from zero: the residual of evaluation k is 1 / (2^k - 1).
        problem = Problem(lambda z: (z + 1) / 2, torch.zeros(2, 3), lambda: None)
        trace = residuals(PicardSolver(8, 0, damping=1).solve, problem)
        expected = torch.tensor([1 / (2**k - 1) for k in range(1, 9)])
        torch.testing.assert_close(trace, expected.unsqueeze(1).expand(8, 2))
        assert evaluations_to(trace, 0.1) == [4, 4]
        assert evaluations_to(trace, 0.01) == evaluations_to(trace, 1 / 127) == [7, 7]

    def test_samples_count_on_their_own(self):
        trace = torch.tensor([[1.0, 0.1, 1.0], [0.2, 0.5, math.nan], [0.1, 0.01, 1.0]])
        assert evaluations_to(trace, 0.1) == [3, 1, None]


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

    def test_saved_bytes(self, monkeypatch):
        # A convolution saves its input, a ReLU its output: 2x3x8x8 and 2x4x8x8 floats.
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
        model.append(nn.Unflatten(1, (4, 8, 8)))
        monkeypatch.setattr(Subject, 'build', lambda self: Tuple(model))
        measured = measure_models([Subject('mine')], rand(2, 3, 8, 8), 1)
        assert measured['mine']['saved_bytes'] == 4 * 2 * 64 * (3 + 4)
        assert measured['mine']['parameters'] == 16

    def test_repeated_model(self, tool, config, capsys):
        with pytest.raises(SystemExit):
            tool.main(['models', str(config), str(config)])
        assert 'models must have different names' in capsys.readouterr().err


class Tuple(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return (self.model(x),)


class TestMemory:
    def test_report(self, run, config, monkeypatch):
        calls = []

        def measure(subject, case, shape, device):
            calls.append((subject.label, case, shape))
            return 2**20 * len(calls)

        monkeypatch.setattr(memory, '_in_process', measure)
        stock = ['--backbones', 'resnet50']
        output, report = run('memory', config, *stock, '--repeats', 3, *SIZE)
        cases = [(config.stem, case) for case in Case]
        cases += [('resnet50', Case.INFERENCE), ('resnet50', Case.TRAINING)]
        assert calls == [(*case, [2, 3, 16, 16]) for case in cases] * 3
        rounds = report['results']['resnet50']['training step']['rounds']
        assert rounds == [6 * 2**20, 12 * 2**20, 18 * 2**20]
        assert report['results'][config.stem]['inference']['bytes'] == 8 * 2**20
        assert '12.0 MiB' in output

    @pytest.mark.slow
    def test_small_is_near_its_floor(self, root):
        """As its recipe is; on CPU, where the resident set is measured."""
        config = root / 'configs/classification/mdeq-small_4xb32_in1k.py'
        budgets = ['forward_solver.max_evals', 'gradient.solver.max_evals']
        # Enough to fill the histories.
        options = {f'model.backbone.{budget}': 13 for budget in budgets}
        measured = memory.measure_memory(
            [Subject(str(config), options)], (2, 3, 224, 224), 1, 'cpu'
        )
        peak = {case: result['bytes'] for case, result in measured[config.stem].items()}
        assert peak['training step'] <= 1.1 * peak['training step of one application']
        assert peak['inference'] <= 2 * peak['one bare evaluation']

    def test_history_of_the_solver(self, config):
        subject, shape = Subject(str(config)), (1, 3, 32, 32)
        once, solve = (
            memory._in_process(subject, case, shape, 'cpu')
            for case in (Case.EVALUATION, Case.INFERENCE)
        )
        # The state has 30,720 floats; 10 updates are stored in 11 states.
        history = 4 * 30_720 * 11
        assert 0.5 * history < solve - once < 4 * history
        assert 'MALLOC_TRIM_THRESHOLD_' not in os.environ


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
                assert list(row['evaluations_to']) == ['0.1', *TOLS]
        assert all(output.count(name) == 2 for name in names)

    @pytest.mark.parametrize('amp', [False, True])
    def test_amp(self, tool, run, config, monkeypatch, amp):
        seen = []

        def measure(backbone, *args):
            conv = backbone.equilibrium.cell.branches[0][0].conv1
            conv.register_forward_hook(lambda *args: seen.append(args[2].dtype))
            return sweep(backbone, *args)

        monkeypatch.setattr(tool, 'sweep', measure)
        grid = ['--memory', 1, '--window', 1, '--ridge', 0, '--mixing', 1]
        option = ['--amp'] if amp else []
        run('sweep', config, *grid, '--damping', 1, *option, *SIZE)
        assert set(seen) == {torch.bfloat16 if amp else torch.float32}

    def test_sample_that_does_not_get_there(self, monkeypatch):
        slopes = torch.tensor([[0.5], [-0.99]])
        problem = Problem(lambda z: slopes * z + 1, torch.zeros(2, 3), lambda: None)
        module = sys.modules[sweep.__module__]
        monkeypatch.setattr(
            module, 'at_equilibrium', lambda model, x, measure: measure(dict(f=problem))
        )
        grid = Grid((), (), (), mixing=(), damping=(0.5, 1.0))
        damped, plain = sweep(None, None, 30, grid)['f']
        assert damped['solver'] == 'PicardSolver(damping=0.5)'
        counts = plain['evaluations_to']['0.01']
        assert counts == dict(reached=1, max=None, mean=(7 + 30) / 2)

    def test_order_and_counts(self, monkeypatch):
        # Damped by d, the error of f(z) = (z + 1) / 2 is (1 - d / 2)^n.
        problem = Problem(lambda z: (z + 1) / 2, torch.zeros(2, 3), lambda: None)
        module = sys.modules[sweep.__module__]
        monkeypatch.setattr(
            module, 'at_equilibrium', lambda model, x, measure: measure(dict(f=problem))
        )
        grid = Grid((1,), (1,), (0.0,), mixing=(0.8,), damping=(0.5, 1.0))
        rows = sweep(None, None, 30, grid)['f']
        damped = {row['solver']: row['evaluations_to'] for row in rows}
        counts = [damped['PicardSolver(damping=1)'][tol]['max'] for tol in TOLS]
        assert counts == [7, 10, 14]
        counts = [damped['PicardSolver(damping=0.5)'][tol] for tol in TOLS]
        assert [count['max'] for count in counts] == [15, 23, None]
        assert counts[1] == dict(reached=2, max=23, mean=23)
        assert counts[2] == dict(reached=0, max=None, mean=30)
        assert [row['solver'] for row in rows[-3:]] == [
            'PicardSolver(damping=1)',
            'AndersonSolver(window=1, ridge=0, mixing=0.8)',
            'PicardSolver(damping=0.5)',
        ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['solvers', 'c.py', '--evals', '2'], '--evals must be at least 3, got 2'),
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


def test_history_dtype(run, config, monkeypatch):
    dtypes = []

    def allocated(z, n_states, dtype):
        dtypes.append(dtype)
        return allocate(z, n_states, dtype)

    for name in ('anderson', 'broyden'):
        monkeypatch.setattr(f'mdeq_mm.deq.solvers.{name}.allocate', allocated)
    options = [*SIZE, 'model.backbone.forward_solver.type=PicardSolver']
    run('solvers', config, '--repeats', 1, '--history-dtype', 'bfloat16', *options)
    assert set(dtypes) == {'bfloat16'}


def test_own_solvers_spend_the_budget():
    problem = Problem(torch.cos, rand(1, 4), lambda: None)
    for solve in solvers.own_solvers(7).values():
        assert len(residuals(solve, problem)) == 7
