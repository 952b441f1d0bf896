"""Wheel, source distribution and editable installation carry what `mim` looks for."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config

from mdeq_mm import apis

pytestmark = pytest.mark.versions
CONFIG = 'configs/classification/mdeq-tiny_1xb64_digits.py'
SEGMENTOR = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'
CONTENT = (
    'model-index.yml',
    'tools/train.py',
    'tools/test.py',
    'tools/dist_train.sh',
    'tools/dataset_converters/digits.py',
    'configs/_base_/models/fcn_mdeq-small.py',
    *(
        f'checkpoints/{Path(apis.model_files(name)[1]).name}'
        for name in apis.list_models(trained=True)
    ),
    CONFIG,
    SEGMENTOR,
)


def build(kind, source, target):
    """Builds through the standard interface, without fetching anything."""
    target.mkdir(exist_ok=True)
    code = f'from setuptools import build_meta as b; b.build_{kind}({str(target)!r})'
    subprocess.run(
        [sys.executable, '-c', code],
        cwd=source,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope='module')
def source(root, tmp_path_factory):
    """A clean copy of the checkout."""
    path = tmp_path_factory.mktemp('source')
    archive = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=root,
        check=True,
        capture_output=True,
    )
    for name in filter(None, archive.stdout.decode().split('\0')):
        if (root / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes((root / name).read_bytes())
    # Users put weights of their own there.
    (path / 'checkpoints/mine.pth').touch()
    return path


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build('wheel', source, tmp_path_factory.mktemp('wheel'))


def configs(root):
    return {
        f'configs/{path.relative_to(root / "configs")}'
        for path in (root / 'configs').rglob('*')
        if path.suffix in ('.py', '.yml', '.md')
    }


def names_in_wheel(path):
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_wheel(wheel, root):
    names = names_in_wheel(wheel)
    assert wheel.name.startswith('mdeq_mm-')
    assert len(configs(root)) > 30
    for name in {*CONTENT, *configs(root)}:
        assert f'mdeq_mm/.mim/{name}' in names
    assert 'mdeq_mm/deq/solvers/broyden.py' in names
    assert not any(name.startswith(('tests/', 'tools/', 'configs/')) for name in names)
    assert not any('__pycache__' in name for name in names)
    assert sum('.mim/checkpoints/' in name for name in names) == len(
        apis.list_models(trained=True)
    )


@pytest.mark.parametrize(
    ('extra', 'names'),
    [
        ('openmmlab', {'ftfy', 'regex', 'setuptools', 'torchvision'}),
        ('onedl', {'torchvision'}),
    ],
)
def test_extras_have_what_toolboxes_import_unasked(wheel, extra, names):
    """A fresh environment lacked it: pip installs what toolboxes ask for, no more."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (x for x in archive.namelist() if x.endswith('.dist-info/METADATA'))
        metadata = archive.read(path).decode()
    asked = re.findall(r'^Requires-Dist: ([\w-]+)(.*)$', metadata, re.MULTILINE)
    assert names <= {name for name, rest in asked if re.search(rf"['\"]{extra}", rest)}


def test_sdist(source, wheel, tmp_path):
    path = build('sdist', source, tmp_path / 'sdist')
    with tarfile.open(path) as archive:
        names = {name.split('/', 1)[-1] for name in archive.getnames()}
        archive.extractall(tmp_path / 'unpacked')
    for name in CONTENT:
        assert f'mdeq_mm/.mim/{name}' in names
    assert {'LICENSE', 'README.md', 'setup.py', 'requirements/runtime.txt'} <= names
    (unpacked,) = (tmp_path / 'unpacked').iterdir()
    again = build('wheel', unpacked, tmp_path / 'wheel')
    assert names_in_wheel(again) == names_in_wheel(wheel)


def test_editable_installation(root):
    """What `make env` has installed."""
    mim = root / 'mdeq_mm/.mim'
    for name in ('configs', 'tools', 'checkpoints', 'model-index.yml'):
        assert (mim / name).samefile(root / name)


@pytest.mark.slow
def test_configs_of_an_unpacked_wheel(wheel, tmp_path):
    """Each finds its bases beside it and in the toolboxes."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / 'mdeq_mm/.mim/configs'
    paths = [path for path in folder.glob('*/*.py') if path.parent.name != '_base_']
    assert paths
    for path in paths:
        assert Config.fromfile(path).model


@pytest.mark.slow
def test_tools_of_an_unpacked_wheel(wheel, environment, workplace, tmp_path):
    """They find their configs, and the configs their bases, wherever they lie."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    mim = tmp_path / 'site/mdeq_mm/.mim'
    result = subprocess.run(
        [
            *(sys.executable, mim / 'tools/train.py', mim / SEGMENTOR),
            *('--work-dir', tmp_path / 'run', '--cfg-options'),
            *('train_cfg.max_iters=1', 'val_dataloader.dataset.indices=2'),
        ],
        cwd=workplace,
        env={**environment, 'PYTHONPATH': str(tmp_path / 'site')},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert (tmp_path / 'run/iter_1.pth').exists()
