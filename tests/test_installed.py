import subprocess
import sys

import pytest

from mdeq_mm import installed

pytestmark = pytest.mark.versions


@pytest.fixture
def pretend(monkeypatch):
    """Lets pip have installed what a test says, and nothing else of that name."""

    def apply(**versions):
        known = {name.replace('_', '-'): value for name, value in versions.items()}
        real = installed.version

        def version(name):
            if name not in known:
                return real(name)
            if known[name] is None:
                raise installed.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(installed, 'version', version)

    return apply


def set_version(monkeypatch, module, version):
    monkeypatch.setattr(f'{module}.__version__', version)


def test_what_is_installed(recwarn):
    installed.check_versions()
    assert not [w for w in recwarn if 'same files' in str(w.message)]


@pytest.mark.parametrize(
    ('module', 'version', 'message'),
    [
        (
            'torch',
            '1.13.1+cu117',
            r'needs torch>=2.1.0, found torch 1.13.1\+cu117: pip',
        ),
        ('mmengine', '0.7.0', r'needs mmengine>=0.10.0, found .*mmengine.* 0.7.0: pip'),
        ('mmcv', '1.7.2', r'needs mmcv>=2.0.0, found .*mmcv.* 1.7.2: pip install'),
    ],
)
def test_too_old(monkeypatch, module, version, message):
    set_version(monkeypatch, module, version)
    with pytest.raises(ImportError, match=message):
        installed.check_versions()


@pytest.mark.parametrize(
    ('name', 'version', 'message'),
    [
        (
            'mmsegmentation',
            '0.30.0',
            'mmseg>=1.2.0, found mmsegmentation 0.30.0: .*or ',
        ),
        ('mmpretrain', '1.0.0rc8', 'mmpretrain>=1.2.0, found mmpretrain 1.0.0rc8'),
        ('mmdet', '2.28.2', 'mmdet>=3.3.0, found mmdet 2.28.2: .*, or uninstall it'),
    ],
)
def test_toolbox_too_old(pretend, name, version, message):
    others = {'mmsegmentation': 'onedl_mmsegmentation', 'mmdet': 'onedl_mmdetection'}
    pretend(**{name: version, others.get(name, f'onedl_{name}'): None})
    with pytest.raises(ImportError, match=message):
        installed.check_versions()


def test_no_toolbox(pretend):
    names = [
        name.replace('-', '_')
        for needed in installed.REQUIREMENTS
        if needed.optional
        for name in needed.distributions
    ]
    pretend(**dict.fromkeys(names))
    installed.check_versions()


def test_two_with_the_same_files(pretend):
    pretend(mmengine='0.10.7', onedl_mmengine='0.10.12')
    with pytest.warns(UserWarning, match='mmengine and onedl-mmengine have the same'):
        installed.check_versions()


@pytest.mark.parametrize('module', ['torch', 'mmengine', 'mmcv'])
def test_missing(module, root):
    """The error comes from this check, before anything else asks for the module."""
    code = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hidden())
import mdeq_mm
"""
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f'ImportError: mdeq_mm needs {module}>=')
    assert ', found none: pip install ' in last


def test_a_module_that_lacks_something_itself(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'yapf'", name='yapf')

    monkeypatch.setattr(installed, 'import_module', import_module)
    with pytest.raises(ModuleNotFoundError, match='yapf'):
        installed.check_versions()
