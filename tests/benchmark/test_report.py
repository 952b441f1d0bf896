"""A part of a report: what ends well, what fails, and what takes too long."""

import os
import sys
import time
from pathlib import Path

import pytest

from mdeq_mm.benchmark import report
from mdeq_mm.benchmark.report import ReportPart, excerpt, run_part


@pytest.fixture
def run(root, tmp_path):
    """Runs some code as a part, on the CPU."""

    def call(code, limit=30.0, **kwargs):
        part = ReportPart('Part', 1.0, [sys.executable, '-c', code], **kwargs)
        return run_part(part, tmp_path, root, 'cpu', limit)

    return call


class TestRunPart:
    @pytest.mark.parametrize(
        ('code', 'status', 'lines'),
        [
            ('print("one")', 'ok', ['one']),
            ('import sys; sys.exit("two")', 'FAILED with exit code 1', ['two']),
            ('import os; os.abort()', 'FAILED with exit code -6', ['']),
        ],
    )
    def test_end(self, run, code, status, lines):
        shown, output = run(code)
        assert shown.startswith(f'{status}, ')
        assert output == lines

    def test_out_of_time(self, run, monkeypatch, tmp_path):
        """What a part has started ends with it, and what it has printed stays."""
        monkeypatch.setattr(report, 'GRACE_PERIOD', 0.2)
        child = tmp_path / 'child'
        code = (
            'import pathlib, signal, subprocess, time\n'
            'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
            'process = subprocess.Popen(["sleep", "60"])\n'
            f'pathlib.Path({str(child)!r}).write_text(str(process.pid))\n'
            'print("begun", flush=True)\n'
            'time.sleep(60)'
        )
        status, lines = run(code, limit=4.0)
        assert status.startswith('OUT OF TIME, ')
        assert lines == ['begun']
        deadline = time.monotonic() + 10
        while is_alive(int(child.read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_preparation_that_fails(self, run):
        def prepare(folder):
            raise OSError('no space left')

        status, lines = run('pass', prepare=prepare)
        assert status == 'FAILED before it began'
        assert lines == ["OSError('no space left')"]

    def test_what_is_read_of_the_folder(self, run):
        def read(folder):
            return (folder / 'result').read_text().splitlines()

        code = 'open("result", "w").write("a\\nb"); print("output")'
        assert run(code, read=read)[1] == ['a', 'b']
        # What has failed has no result.
        assert run(f'{code}; raise SystemExit(1)', read=read)[1] == ['output']

    def test_no_gpu_is_shown_to_a_run_on_the_cpu(self, run):
        code = 'import os; print(repr(os.environ["CUDA_VISIBLE_DEVICES"]))'
        assert run(code)[1] == ["''"]

    def test_the_command_can_import_the_package(self, run, root):
        code = 'import importlib.util as i; print(i.find_spec("mdeq_mm").origin)'
        assert run(code)[1] == ['./mdeq_mm/__init__.py']


class TestExcerpt:
    def test_long_outputs_are_cut(self, root):
        lines = excerpt('\n'.join(map(str, range(1000))), root)
        assert lines[:2] == ['(940 lines before)', '940']
        assert lines[-1] == '999'
        assert excerpt('x' * 1000, root) == ['x' * 200]

    def test_paths_stay_private(self, root):
        text = f'{root}/mdeq_mm/apis.py\n{Path.home()}/other.py'
        assert excerpt(text, root) == ['./mdeq_mm/apis.py', '~/other.py']

    def test_what_passed_is_left_out(self, root):
        text = 'a::b PASSED [ 50%]\na::c FAILED [100%]\nprogress 1\rprogress 2\x1b[0m'
        assert excerpt(text, root) == ['a::c FAILED [100%]', 'progress 2']


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended may wait to be taken note of.
    return (
        'Z' not in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    )
