"""The faults can be put in, and the script that does it says what became of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from . import run
from .mutations import MUTATIONS, Mutation

HERE = Path(__file__).resolve().parent
# The parts of the product of which each must have faults.
KINDS = {
    *('loop', 'history', 'Broyden', 'Anderson', 'Picard', 'implicit', 'freeze'),
    *('dropout', 'fusion', 'phases', 'statistics', 'Jacobian', 'resume', 'converter'),
    *('reading', 'metrics', 'loss', 'guesses', 'data', 'optimizer', 'tasks', 'bounds'),
}


def problem(mutation, root):
    """Returns why a mutation cannot be put in, None if it can."""
    try:
        run.mutated(mutation, root)
    except (OSError, SyntaxError, ValueError) as error:
        return f'{mutation.name}: {error}'
    return None


def test_they_can_be_put_in(root):
    problems = [problem(mutation, root) for mutation in MUTATIONS]
    assert not any(problems), '\n'.join(filter(None, problems))


def test_there_are_some_of_every_kind():
    names = Counter(mutation.name for mutation in MUTATIONS)
    assert max(names.values()) == 1
    assert len(names) >= 64
    assert {mutation.kind for mutation in MUTATIONS} == KINDS


def test_their_tests_exist(root):
    for mutation in MUTATIONS:
        assert mutation.tests
        for test in mutation.tests:
            file, _, name = test.partition('::')
            assert (root / file).is_file(), f'{mutation.name}: {test}'
            assert f'class {name}' in (root / file).read_text() or not name


class TestPuttingIn:
    @pytest.fixture
    def put(self, tmp_path):
        (tmp_path / 'code.py').write_text('a = 1\nb = 1\n')

        def put(old, new):
            mutation = Mutation('it', 'loop', 'code.py', old, new, ())
            return run.mutated(mutation, tmp_path)

        return put

    def test_right(self, put):
        assert put('a = 1', 'a = 2') == 'a = 2\nb = 1\n'

    @pytest.mark.parametrize('old', ['= 1', 'c'])
    def test_text_is_not_there_once(self, put, old):
        with pytest.raises(ValueError, match='times in code.py'):
            put(old, '= 2')

    def test_no_python(self, put):
        with pytest.raises(SyntaxError):
            put('a = 1', 'a = (')

    def test_same_program(self, put):
        with pytest.raises(ValueError, match='changes nothing'):
            put('a = 1', 'a = 1  # or 2')


TOY = {
    'mdeq_mm/__init__.py': 'def plus(a, b):\n    return a + b\n\n\nUNUSED = 1\n',
    'tests/test_plus.py': (
        'import mdeq_mm\n\n\ndef test_plus():\n    assert mdeq_mm.plus(1, 1) == 2\n'
    ),
    'tests/test_nothing.py': (
        "import pytest\n\npytestmark = pytest.mark.skip('never')\n\n\n"
        'def test_nothing():\n    pass\n'
    ),
    'pyproject.toml': '[tool.pytest.ini_options]\nmarkers = ["slow"]\n',
}
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import run
run.PRELOADED = ('pytest',)
root, tests = Path({root!r}), ('tests/test_plus.py',)
FILE = 'mdeq_mm/__init__.py'
mutations = [run.Mutation(*fields) for fields in {fields!r}]
sys.exit(run.main({argv!r}, mutations, root))
"""


class TestScript:
    """On a toy, so that each outcome is known."""

    @pytest.fixture
    def run_toy(self, tmp_path):
        checkout = tmp_path / 'toy'
        for name, text in TOY.items():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_text(text)
        subprocess.run(['git', 'init', '-q', checkout], check=True)

        def run_toy(*mutations, argv=()):
            fields = [
                (name, 'loop', 'mdeq_mm/__init__.py', old, new, (f'tests/{tests}',))
                for name, old, new, tests in mutations
            ]
            program = PROGRAM.format(
                here=str(HERE), root=str(checkout), fields=fields, argv=list(argv)
            )
            assert ast.parse(program)
            process = subprocess.run(
                [sys.executable, '-c', program],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (checkout / 'mdeq_mm/__init__.py').read_text() == TOY[
                'mdeq_mm/__init__.py'
            ]
            return process.returncode, process.stdout + process.stderr

        return run_toy

    def test_every_outcome(self, run_toy, tmp_path):
        out = tmp_path / 'out/table.md'
        code, output = run_toy(
            ('sign', 'a + b', 'a - b', 'test_plus.py'),
            ('unused', 'UNUSED = 1', 'UNUSED = 2', 'test_plus.py'),
            ('skipped', 'a + b', 'a * b', 'test_nothing.py'),
            ('broken', 'UNUSED = 1', 'raise OSError', 'test_plus.py'),
            argv=['--jobs', '2', '--out', str(out)],
        )
        assert code == 1, output
        rows = out.read_text().splitlines()
        assert rows[2:6] == [
            '| loop | sign | killed | `tests/test_plus.py::test_plus` |',
            '| loop | unused | survived |  |',
            '| loop | skipped | not applicable | every test was skipped |',
            '| loop | broken | error | pytest ended with 2 |',
        ], output
        assert rows[-1] == (
            '4 mutations: 1 killed, 1 survived, 1 not applicable, 1 error'
        )

    def test_all_killed(self, run_toy):
        sign = ('sign', 'a + b', 'a - b', 'test_plus.py')
        unused = ('unused', 'UNUSED = 1', 'UNUSED = 2', 'test_plus.py')
        code, output = run_toy(sign, unused, argv=['--only', 'sign'])
        assert code == 0, output
        assert '1 mutations: 1 killed' in output

    def test_tests_that_fail_without_a_fault(self, run_toy):
        code, output = run_toy(('sign', 'a + b', 'a - b', 'absent.py'))
        assert code == 1
        assert 'without a mutation' in output
