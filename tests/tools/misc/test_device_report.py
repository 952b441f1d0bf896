"""The report of a device: what ends well, what fails, and what takes too long."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

TINY = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('misc/device_report.py')


@pytest.fixture
def python(tool):
    """Makes a part that runs some code."""

    def make(title, code, share=1.0, **kwargs):
        return tool.Part(title, share, [sys.executable, '-c', code], **kwargs)

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

    def test_out_of_time(self, report, python, tool, monkeypatch, tmp_path):
        """What a part has started ends with it, and what it has printed stays."""
        monkeypatch.setattr(tool, 'PATIENCE', 0.2)
        child = tmp_path / 'child'
        code = (
            'import pathlib, signal, subprocess, sys, time\n'
            'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
            'process = subprocess.Popen(["sleep", "60"])\n'
            f'pathlib.Path({str(child)!r}).write_text(str(process.pid))\n'
            'print("begun", flush=True)\n'
            'time.sleep(60)'
        )
        begin = time.monotonic()
        code, text = report(
            python('Hangs', code, share=0.8), python('Next', 'print(1)'), minutes=0.1
        )
        assert time.monotonic() - begin < 8
        assert code == 1
        assert '## Hangs: OUT OF TIME' in text
        assert '\nbegun\n' in text
        assert '## Next: ok' in text
        deadline = time.monotonic() + 10
        while is_alive(int(child.read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_time_that_is_left_goes_to_the_next(
        self, report, python, tool, monkeypatch
    ):
        limits = []

        def run(part, folder, device, limit):
            limits.append(limit + 2 * tool.PATIENCE)
            return 'ok', []

        monkeypatch.setattr(tool, 'run', run)
        report(*(python(str(n), 'pass', share) for n, share in enumerate((3, 1, 1))))
        assert limits == pytest.approx([36, 30, 60], abs=1)

    def test_preparation_that_fails(self, report, python):
        def prepare(folder):
            raise OSError('no space left')

        code, text = report(python('First', 'pass', prepare=prepare))
        assert code == 1
        assert '## First: FAILED before it began\n' in text
        assert 'no space left' in text

    def test_report_is_there_while_a_part_runs(self, report, python, tmp_path):
        out = tmp_path / 'new/report.md'
        code = f'print(open({str(out)!r}).read().splitlines()[-1])'
        _, text = report(python('First', 'pass'), python('Second', code))
        assert '\nSecond: not ended\n~' in text

    def test_no_gpu_is_shown_to_a_run_on_the_cpu(self, report, python):
        code = 'import os; print(repr(os.environ["CUDA_VISIBLE_DEVICES"]))'
        assert "\n''\n" in report(python('First', code))[1]


class TestExcerpt:
    def test_long_outputs_are_cut(self, tool):
        lines = tool.excerpt('\n'.join(map(str, range(1000))))
        assert lines[:2] == ['(940 lines before)', '940']
        assert lines[-1] == '999'
        assert tool.excerpt('x' * 1000) == ['x' * 200]

    def test_paths_stay_private(self, tool, root):
        text = f'{root}/mdeq_mm/apis.py\n{Path.home()}/other.py'
        assert tool.excerpt(text) == ['./mdeq_mm/apis.py', '~/other.py']

    def test_what_passed_is_left_out(self, tool):
        text = 'a::b PASSED [ 50%]\na::c FAILED [100%]\nprogress 1\rprogress 2\x1b[0m'
        assert tool.excerpt(text) == ['a::c FAILED [100%]', 'progress 2']


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


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended may wait to be taken note of.
    return (
        'Z' not in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    )


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
