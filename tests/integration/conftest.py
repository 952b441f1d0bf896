import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def environment():
    """The environment of a user who has activated the virtual environment."""
    return {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'OMP_NUM_THREADS': '1',
    }


@pytest.fixture(scope='session')
def run(root, environment):
    """Runs a tool to its end and returns what it printed."""

    def run_tool(tool, *args, cwd, timeout=1200, check=True, **variables):
        program = [sys.executable] if tool.endswith('.py') else ['bash']
        result = subprocess.run(
            [*program, str(root / 'tools' / tool), *map(str, args)],
            cwd=cwd,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert result.returncode == 0, result.stdout[-6000:]
        return result.stdout

    return run_tool


@pytest.fixture(scope='session')
def workplace(run, tmp_path_factory):
    """A folder with the built-in data sets under ``data``, where the configs look."""
    path = tmp_path_factory.mktemp('workplace')
    run('dataset_converters/digits.py', cwd=path)
    return path


@pytest.fixture
def config(root, tmp_path):
    """Writes a config that inherits from one of the project's."""

    def write(base, text=''):
        path = tmp_path / 'config.py'
        path.write_text(f'_base_ = [{str(root / "configs" / base)!r}]\n{text}')
        return path

    return write


@pytest.fixture(scope='session')
def scalars():
    """Reads the JSON log of the newest run in a work directory."""

    def read(work_dir):
        path = max(Path(work_dir).glob('*/vis_data/scalars.json'))
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read
