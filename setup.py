"""Packaging. Like every OpenMMLab package this one carries its configs and tools, under
``mdeq_mm/.mim``, which is where ``mim`` looks for them. The weights that the metafiles
name are there, too."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mdeq_mm'
MIM_CONTENT = ('configs', 'tools', 'checkpoints', 'model-index.yml')


def add_mim_content(mim: Path, link: bool) -> None:
    """Fills ``.mim``: with links in an editable installation, else with copies."""
    mim.mkdir(parents=True, exist_ok=True)
    for name in MIM_CONTENT:
        # A source distribution holds the content in .mim alone.
        source, target = ROOT / name, mim / name
        if not source.exists():
            source = ROOT / PACKAGE / '.mim' / name
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        if link:
            target.symlink_to(Path('..', '..', name))
        elif source.is_dir():
            shutil.copytree(source, target, ignore=left_out)
        else:
            shutil.copy2(source, target)


def left_out(folder: str, names: list) -> set:
    """Returns what of a folder is not for a package.

    Users put weights of their own into ``checkpoints``.
    """
    if Path(folder).name != 'checkpoints':
        return {name for name in names if name.endswith(('__pycache__', '.pyc'))}
    metafiles = Path(folder).parent.glob('configs/*/metafile.yml')
    named = re.findall(
        r'^ *Weights: *checkpoints/(\S+)$',
        '\n'.join(path.read_text() for path in metafiles),
        flags=re.MULTILINE,
    )
    return set(names) - set(named)


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        parent = ROOT if self.editable_mode else Path(self.build_lib)
        add_mim_content(parent / PACKAGE / '.mim', link=self.editable_mode)


class Sdist(sdist):
    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        add_mim_content(Path(base_dir, PACKAGE, '.mim'), link=False)


def version() -> str:
    namespace: dict = {}
    exec((ROOT / PACKAGE / 'version.py').read_text(), namespace)
    return namespace['__version__']


def requirements(name: str) -> list:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-'))]


setup(
    name=PACKAGE,
    version=version(),
    description='Multiscale deep equilibrium models (MDEQ) for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='deep equilibrium models, semantic segmentation, image classification',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    python_requires='>=3.9',
    install_requires=requirements('runtime.txt'),
    extras_require={
        'benchmark': requirements('benchmark.txt'),
        'deploy': requirements('deploy.txt'),
        'det': requirements('det.txt'),
        'onedl': requirements('toolboxes-onedl.txt'),
        'openmmlab': requirements('toolboxes-openmmlab.txt'),
        'visualization': requirements('optional.txt'),
        'web': requirements('web.txt'),
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    cmdclass={'build_py': BuildPy, 'sdist': Sdist},
    zip_safe=False,
)
