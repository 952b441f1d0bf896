"""Whether what this package needs is installed, in versions that serve.

pip cannot ask for all of it. Several distributions have the files of mmengine and of
mmcv, so this package requires none of them. The toolboxes are optional.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Optional


@dataclass(frozen=True)
class Requirement:
    """A package, and the oldest version of it that serves.

    Attributes:
        module (str): The name that is imported.
        oldest (str): The version.
        distributions (tuple[str, ...]): What pip can install to have it.
        remedy (str): What to do.
        optional (bool): Whether this package works without it. Defaults to False.
    """

    module: str
    oldest: str
    distributions: tuple[str, ...]
    remedy: str
    optional: bool = False


REQUIREMENTS = (
    Requirement('torch', '2.1.0', ('torch',), 'pip install "torch>=2.1.0"'),
    Requirement(
        'mmengine',
        '0.10.0',
        ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
        'pip install "mmengine>=0.10.0", or its successor onedl-mmengine',
    ),
    Requirement(
        'mmcv',
        '2.0.0',
        ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
        'pip install mmcv-lite==2.1.0, or mmcv==2.1.0 for compiled ops, or the '
        'successor onedl-mmcv',
    ),
    Requirement(
        'mmseg',
        '1.2.0',
        ('mmsegmentation', 'onedl-mmsegmentation'),
        'pip install "mmsegmentation>=1.2.0", or uninstall it',
        optional=True,
    ),
    Requirement(
        'mmpretrain',
        '1.2.0',
        ('mmpretrain', 'onedl-mmpretrain'),
        'pip install "mmpretrain>=1.2.0", or uninstall it',
        optional=True,
    ),
    Requirement(
        'mmdet',
        '3.3.0',
        ('mmdet', 'onedl-mmdetection'),
        'pip install "mmdet>=3.3.0", or uninstall it',
        optional=True,
    ),
)


def check_versions() -> None:
    """Checks the packages that this one stands on, before anything else imports them.

    Several distributions with the same files give a warning: nobody can tell whose
    files are there.

    Raises:
        ImportError: If a package is missing or too old. The error names the package,
            what was found, and what to install.
    """
    for needed in REQUIREMENTS:
        installed = _installed(needed.distributions)
        if len(installed) > 1:
            warnings.warn(
                f'{" and ".join(installed)} have the same files: uninstall all of '
                'them, then install one',
                stacklevel=2,
            )
        if needed.optional:
            found = next(iter(installed.values()), None)
            if found is None:
                continue
        else:
            found = _version_of(needed.module)
        if found is None or _numbers(found) < _numbers(needed.oldest):
            name = next(iter(installed), needed.module)
            raise ImportError(
                f'mdeq_mm needs {needed.module}>={needed.oldest}, found '
                f'{f"{name} {found}" if found else "none"}: {needed.remedy}'
            )


def _installed(distributions: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of those that pip has installed, by name."""
    found = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _version_of(module: str) -> Optional[str]:
    """Returns the version of a module, None if there is no such module."""
    try:
        return str(import_module(module).__version__)
    except ModuleNotFoundError as error:
        # A module that is there may lack something itself.
        if error.name != module:
            raise
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version)[:3])
