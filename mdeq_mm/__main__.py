"""Runs a tool of a toolbox after this package has been imported.

``python -m mdeq_mm TOOL [ARGUMENTS]`` is ``python TOOL [ARGUMENTS]``, but with what
``import mdeq_mm`` puts in place: MMSegmentation and MMDetection can be imported with
``mmcv-lite``, and the classes are registered.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs the tool that the command line names."""
    parser = argparse.ArgumentParser(
        prog='python -m mdeq_mm',
        description='Runs a tool of a toolbox after importing mdeq_mm, so that it '
        'works with mmcv-lite.',
    )
    parser.add_argument(
        'tool',
        help='a file, or TOOLBOX::FILE for one among the tools of an installed '
        'toolbox, such as mmseg::misc/print_config.py',
    )
    parser.add_argument(
        'arguments', nargs=argparse.REMAINDER, help='what the tool is given'
    )
    args = parser.parse_args()
    try:
        path = find_tool(args.tool)
    except ValueError as error:
        parser.error(str(error))
    # As for a script that Python is given.
    if not getattr(sys.flags, 'safe_path', False):
        sys.path[0] = str(path.parent)
    sys.argv = [str(path), *args.arguments]
    runpy.run_path(str(path), run_name='__main__')


def find_tool(name: str) -> Path:
    """Returns the file of a tool.

    Args:
        name (str): A path, or ``TOOLBOX::FILE``.

    Returns:
        Path: The absolute path.

    Raises:
        ValueError: If there is no such file.
    """
    toolbox, separator, file = name.rpartition('::')
    if not separator:
        path = Path(file).resolve()
        if not path.is_file():
            raise ValueError(f'there is no file {str(path)!r}')
        return path
    spec = importlib.util.find_spec(toolbox) if toolbox.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(f'{toolbox!r} of {name!r} is no installed toolbox')
    folder = Path(spec.origin).parent / '.mim/tools'
    path = folder / file
    if not path.is_file():
        tools = sorted(
            tool.relative_to(folder).as_posix() for tool in folder.rglob('*.py')
        )
        raise ValueError(f'{toolbox} has no tool {file!r}; it has {", ".join(tools)}')
    return path


if __name__ == '__main__':
    main()
