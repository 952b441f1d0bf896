"""Tools run as scripts, from any folder; their other tests call ``main``."""

import subprocess
import sys

import pytest

# As Python starts a script; in one process, because imports take seconds.
START = """
import runpy
import sys
from pathlib import Path

import mdeq_mm

# Toolboxes are imported when a config of theirs is used, and no sooner.
print('loaded', [name for name in sys.modules if name in ('mmseg', 'mmpretrain')])

path = list(sys.path)
for tool in sys.argv[1:]:
    sys.argv[:] = [tool, '--help']
    sys.path[:] = [str(Path(tool).parent), *path[1:]]
    try:
        runpy.run_path(tool, run_name='__main__')
    except SystemExit as end:
        print(f'{Path(tool).name} ended with {end.code}')
"""


@pytest.mark.slow
def test_every_tool_starts(root, tmp_path):
    tools = sorted([*(root / 'tools').rglob('*.py'), *(root / 'demo').glob('*.py')])
    # What train.py and test.py share, and what the converters do.
    for module in ('tools/launch.py', 'tools/dataset_converters/folders.py'):
        tools.remove(root / module)
    assert len(tools) >= 13
    result = subprocess.run(
        [sys.executable, '-c', START, *tools],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert 'loaded []\n' in result.stdout
    for tool in tools:
        assert f'usage: {tool.name} ' in result.stdout
        assert f'{tool.name} ended with 0\n' in result.stdout
