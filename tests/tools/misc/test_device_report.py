"""The report of a device: its parts, of which one that fails stops no other."""

import sys
from pathlib import Path

import pytest
import torch

from mdeq_mm.benchmark.report import ReportPart

TINY = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('misc/device_report.py')


@pytest.fixture
def python():
    """Makes a part that runs some code."""

    def make(title, code, share=1.0, **kwargs):
        return ReportPart(title, share, [sys.executable, '-c', code], **kwargs)

    return make


@pytest.fixture
def report(tool, monkeypatch, tmp_path):
    """Runs given parts; returns the exit code and the report."""

    def call(*parts, minutes=1.0):
        monkeypatch.setattr(tool, 'make_parts', lambda args: list(parts))
        out = tmp_path / 'new/report.md'
        arguments = ['--device', 'cpu', '--out', str(out), '--minutes', str(minutes)]
        try:
            tool.main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, out.read_text()

    return call


class TestParts:
    def test_one_that_fails_stops_no_other(self, report, python):
        code, text = report(
            python('First', 'print("one")'),
            python('Second', 'import sys; print("two"); sys.exit(3)'),
            python('Third', 'import os; os.abort()'),
            python('Fourth', 'print("four")'),
        )
        assert code == 1
        assert '## First: ok, 0 s\n' in text
        assert '## Second: FAILED with exit code 3, 0 s\n' in text
        assert '## Third: FAILED with exit code -6, 0 s\n' in text
        assert '## Fourth: ok, 0 s\n' in text
        for word in ('one', 'two', 'four'):
            assert f'\n{word}\n' in text

    def test_all_well(self, report, python):
        code, text = report(python('First', 'pass'))
        assert code == 0
        assert f'| torch | {torch.__version__.partition("+")[0]}' in text
        assert '| device | CPU, ' in text

    def test_time_that_is_left_goes_to_the_next(
        self, report, python, tool, monkeypatch
    ):
        limits = []

        def run_part(part, folder, root, device, limit):
            limits.append(limit + 2 * tool.GRACE_PERIOD)
            return 'ok', []

        monkeypatch.setattr(tool, 'run_part', run_part)
        report(*(python(str(n), 'pass', share) for n, share in enumerate((3, 1, 1))))
        assert limits == pytest.approx([36, 30, 60], abs=1)

    def test_report_is_there_while_a_part_runs(self, report, python, tmp_path):
        out = tmp_path / 'new/report.md'
        code = f'print(open({str(out)!r}).read().splitlines()[-1])'
        _, text = report(python('First', 'pass'), python('Second', code))
        assert '\nSecond: not ended\n~' in text


class TestArguments:
    def test_no_gpu(self, tool, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        with pytest.raises(SystemExit):
            tool.parse_args([])
        error = capsys.readouterr().err
        assert f'torch {torch.__version__}' in error
        assert 'finds no GPU' in error

    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            (['--minutes', '0'], 'must be positive, got 0'),
            (['--config', 'nowhere.py'], '--config must be a file, got nowhere.py'),
            (['--parts', 'all'], 'invalid choice'),
        ],
    )
    def test_wrong_ones(self, tool, capsys, arguments, match):
        with pytest.raises(SystemExit):
            tool.parse_args(['--device', 'cpu', *arguments])
        assert match in capsys.readouterr().err

    def test_data(self, tool, tmp_path, monkeypatch):
        monkeypatch.setattr(tool, 'ROOT', tmp_path)
        args = tool.parse_args(['--device', 'cpu', '--config', __file__])
        assert tool.training_part(args).title.endswith('generated digits')
        (tmp_path / tool.CIFAR10).mkdir(parents=True)
        assert tool.training_part(args).title.endswith('CIFAR-10')

    def test_parts(self, tool):
        titles = [p.title for p in tool.make_parts(tool.parse_args(['--device=cpu']))]
        assert titles[:-1] == [
            'Tests',
            *('Solvers, float32', 'Solvers, bfloat16'),
            *('Models, float32', 'Models, bfloat16'),
        ]


@pytest.mark.slow
def test_whole_report(tool, root, tmp_path, monkeypatch):
    """Every part for once, on the CPU and cut short."""
    monkeypatch.setattr(tool, 'CIFAR10', Path('data/nowhere'))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'report.md'
    tool.main(
        [
            *('--device', 'cpu', '--out', str(out), '--minutes', '9'),
            *('--config', str(root / TINY), '--shape', '16', '16'),
            *('--batch-size', '2', '--repeats', '1', '--pytest-args=-k random_state'),
            '--cfg-options',
            'model.backbone.forward_solver.max_evals=4',
            'model.backbone.gradient.solver.max_evals=4',
            'train_dataloader.dataset.indices=80',
            'train_dataloader.batch_size=8',
            'val_dataloader.dataset.indices=64',
        ]
    )
    text = out.read_text()
    assert text.count(': ok, ') == 6
    assert '2 passed' in text
    assert text.count('BroydenSolver ') == 4
    assert text.count('\nresnet50 ') == 2
    assert 'accuracy/top1' in text
    assert 'forward_evals 4' in text
    assert str(Path.home()) not in text
