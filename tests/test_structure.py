"""The rooms of the package, the arrows between them, and how large things may grow."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mdeq_mm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'mdeq_mm'
# What each room may know. Arrows go down only: a room knows rooms of lines above it.
MAY_IMPORT = {
    'version': set(),
    '__main__': set(),
    'installed': set(),
    'compat': set(),
    'deq': set(),
    'models': {'deq'},
    'evaluation': {'deq'},
    'checkpoints': {'compat', 'deq', 'models'},
    'model_index': set(),
    'apis': {'checkpoints', 'deq', 'model_index'},
    'image_pipeline': {'apis'},
    'anytime': {'apis', 'deq', 'image_pipeline'},
    'cli': {'model_index'},
    'dataset_check': {'apis'},
    'benchmark': {'anytime', 'apis', 'deq'},
    'deploy': {'apis', 'benchmark', 'deq'},
    'visualization': {'apis', 'benchmark', 'deq'},
    'engine': {'checkpoints', 'deq', 'evaluation', 'models', 'visualization'},
    'inference': {
        'anytime',
        'apis',
        'benchmark',
        'checkpoints',
        'deq',
        'image_pipeline',
        'visualization',
    },
}
DEQ_MAY_IMPORT = {'torch', 'mmengine.registry', 'mmengine.utils'}
TOOLBOXES = {'mmseg', 'mmpretrain', 'mmdet'}
FILE_LINES = 300
FUNCTION_LINES = 60
PICTURE = re.compile(r'^```text\n((?:\w+ ->.*\n)+)```$', re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """One name that a file imports."""

    file: str
    line: int
    module: str  # where the name comes from, in full
    name: str | None  # None for `import module`
    at_module_level: bool

    @property
    def target(self) -> str:
        return f'{self.module}.{self.name}' if self.name else self.module

    def __str__(self) -> str:
        return f'{self.file}:{self.line} imports {self.target}'


def imports_of(source: str, file: str) -> list[Import]:
    """Finds what a file imports, inside functions too.

    Args:
        source (str): Text of the file.
        file (str): Its path from the root of the checkout.
    """
    tree = ast.parse(source)
    in_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    package = Path(file).parent.parts
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join((*base, *filter(None, [node.module])))
            names = [(module, alias.name) for alias in node.names]
        else:
            continue
        at_module_level = id(node) not in in_functions
        found += [Import(file, node.lineno, *name, at_module_level) for name in names]
    return found


def files_under(folder: str) -> list[Path]:
    """Python files of a folder, without the links of an editable installation."""
    paths = sorted((ROOT / folder).rglob('*.py'))
    return [path for path in paths if '.mim' not in path.parts]


def imports_under(folder: str) -> list[Import]:
    return [
        found
        for path in files_under(folder)
        for found in imports_of(path.read_text(), path.relative_to(ROOT).as_posix())
    ]


def room_of(module: str) -> str:
    """The folder or file directly below the package, '' for the package itself."""
    parts = module.removesuffix('.py').replace('/', '.').split('.')
    return parts[1] if len(parts) > 1 and parts[1] != '__init__' else ''


def arrows_of(imports: list[Import]) -> dict[str, set[str]]:
    """Which rooms each room imports; the package's own file gathers the rooms."""
    arrows = {room_of(found.file): set() for found in imports}
    for found in imports:
        source, target = room_of(found.file), room_of(found.target)
        if found.target.split('.')[0] == PACKAGE and target != source:
            arrows[source].add(target or PACKAGE)
    arrows.pop('', None)
    return arrows


def code_lines(function: ast.AST) -> int:
    """Lines of a function without its decorators and its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def rooms() -> set[str]:
    """Rooms that hold a file."""
    found = {
        room_of(path.relative_to(ROOT).as_posix()) for path in files_under(PACKAGE)
    }
    return found - {''}


@pytest.fixture(scope='module')
def imports():
    """Everything that the package imports."""
    return imports_under(PACKAGE)


class TestArrows:
    def test_table_has_no_arrow_that_goes_up(self):
        below = set()
        for room, others in MAY_IMPORT.items():
            assert others <= below
            below.add(room)

    def test_every_room_is_in_the_table(self):
        assert rooms() == set(MAY_IMPORT)

    def test_none_goes_up(self, imports):
        wrong = [
            str(found)
            for found in imports
            if found.target.split('.')[0] == PACKAGE
            and room_of(found.file)
            and room_of(found.target) != room_of(found.file)
            and room_of(found.target) not in MAY_IMPORT[room_of(found.file)]
        ]
        assert wrong == []

    def test_picture_is_true(self, imports):
        """`docs/en/design.md` shows the arrows that there are, and no others."""
        (picture,) = PICTURE.findall((ROOT / 'docs/en/design.md').read_text())
        drawn = {}
        for line in picture.splitlines():
            room, _, others = line.partition(' ->')
            drawn[room] = {name.strip() for name in others.split(',') if name.strip()}
        found = {**{room: set() for room in rooms()}, **arrows_of(imports)}
        assert drawn == found

    def test_deq_knows_no_images(self, imports):
        """It stands on torch alone, and on the registry of mmengine."""
        wrong = []
        for found in imports:
            if room_of(found.file) == 'deq':
                top = found.module.split('.')[0]
                allowed = top in DEQ_MAY_IMPORT or any(
                    f'{found.target}.'.startswith(f'{name}.') for name in DEQ_MAY_IMPORT
                )
                if not (allowed or top == PACKAGE or top in sys.stdlib_module_names):
                    wrong.append(str(found))
        assert wrong == []

    def test_toolboxes_are_optional(self, imports):
        wrong = [
            str(found)
            for found in imports
            if found.at_module_level and found.module.split('.')[0] in TOOLBOXES
        ]
        assert wrong == []

    def test_no_private_name_is_imported(self, imports):
        wrong = [
            str(found)
            for found in [*imports, *imports_under('tools')]
            if found.module.split('.')[0] in (PACKAGE, 'launch')
            and any(re.match('_(?!_)', part) for part in found.target.split('.'))
        ]
        assert wrong == []


class TestTheseTests:
    """What they must find."""

    def test_imports(self):
        source = (
            'import torch.nn as nn\n'
            'from . import deq\n'
            'from ..deq.solvers import BroydenSolver, _step\n'
            'from .mdeq import MDEQ\n'
            'def function():\n'
            '    import mmseg.models\n'
        )
        found = imports_of(source, 'mdeq_mm/models/file.py')
        assert [one.target for one in found] == [
            'torch.nn',
            'mdeq_mm.models.deq',
            'mdeq_mm.deq.solvers.BroydenSolver',
            'mdeq_mm.deq.solvers._step',
            'mdeq_mm.models.mdeq.MDEQ',
            'mmseg.models',
        ]
        assert [one.line for one in found] == [1, 2, 3, 3, 4, 6]
        assert [one.at_module_level for one in found] == [True] * 5 + [False]
        assert arrows_of(found) == {'models': {'deq'}}

    def test_arrows_of_files_and_of_the_package(self):
        found = imports_of('from . import compat, deq', 'mdeq_mm/apis.py')
        found += imports_of('from .. import deq, __version__', 'mdeq_mm/engine/a.py')
        found += imports_of('from . import engine', 'mdeq_mm/__init__.py')
        assert arrows_of(found) == {
            'apis': {'compat', 'deq'},
            'engine': {'deq', '__version__'},
        }

    def test_code_lines(self):
        source = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n'
        assert code_lines(ast.parse(source).body[0]) == 3


def test_no_file_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in files_under(PACKAGE)
    }
    assert {file: n for file, n in lengths.items() if n > FILE_LINES} == {}


def test_no_function_of_deq_is_long():
    """Lines of code: a docstring may be as long as it must."""
    lengths = {
        f'{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}': lines
        for path in files_under(f'{PACKAGE}/deq')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and (lines := code_lines(node)) > FUNCTION_LINES
    }
    assert lengths == {}


def test_public_methods_are_documented():
    """By themselves, or by the method they override: ruff does not see the latter."""
    undocumented = []
    for info in pkgutil.walk_packages(mdeq_mm.__path__, f'{PACKAGE}.'):
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ != module.__name__ or cls.__name__.startswith('_'):
                continue
            for name, member in vars(cls).items():
                is_method = inspect.isroutine(member) or isinstance(member, property)
                if name.startswith('_') or not is_method:
                    continue
                if not inspect.getdoc(getattr(cls, name)):
                    undocumented.append(f'{module.__name__}.{cls.__name__}.{name}')
    assert undocumented == []
