"""``python -m mdeq_mm``."""

import subprocess
import sys

import pytest
from mmengine.utils.dl_utils import mmcv_full_available

from mdeq_mm.__main__ import find_tool, main

CONFIG = 'configs/segmentation/fcn_mdeq-micro_1xb8-1200_digit-scenes-64x64.py'


@pytest.fixture
def call(monkeypatch):
    """Calls it with arguments, in this process."""

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['__main__.py', *args])
        monkeypatch.setattr(sys, 'path', list(sys.path))
        main()

    return call


class TestRun:
    def test_as_a_script(self, call, tmp_path, capsys):
        (tmp_path / 'sibling.py').write_text('NAME = "a sibling"\n')
        (tmp_path / 'tool.py').write_text(
            'import sys\n'
            'from sibling import NAME\n'
            'print(__name__, __file__, sys.argv, NAME)\n'
        )
        path = tmp_path / 'tool.py'
        call(str(path), '--help', 'x', '-y')
        argv = [str(path), '--help', 'x', '-y']
        assert capsys.readouterr().out == f'__main__ {path} {argv} a sibling\n'
        sys.modules.pop('sibling')

    def test_code_of_the_tool(self, call, tmp_path):
        (tmp_path / 'tool.py').write_text('raise SystemExit(7)\n')
        with pytest.raises(SystemExit) as error:
            call(str(tmp_path / 'tool.py'))
        assert error.value.code == 7

    @pytest.mark.parametrize(
        ('name', 'message'),
        [
            ('tool.py', r"there is no file '/.*tool.py'"),
            ('mmseg::tool.py', "mmseg has no tool 'tool.py'; it has .*, train.py"),
            ('mmfoo::train.py', "'mmfoo' of 'mmfoo::train.py' is no installed toolbox"),
            ('os.path::train.py', "'os.path' of .* is no installed toolbox"),
            ('::train.py', "'' of '::train.py' is no installed toolbox"),
        ],
    )
    def test_no_such_tool(self, call, capsys, name, message):
        with pytest.raises(ValueError, match=message):
            find_tool(name)
        with pytest.raises(SystemExit) as error:
            call(name)
        assert error.value.code == 2
        assert 'python -m mdeq_mm: error: ' in capsys.readouterr().err

    @pytest.mark.versions
    def test_tools_of_toolboxes(self):
        for toolbox in ('mmseg', 'mmpretrain'):
            assert find_tool(f'{toolbox}::train.py').is_file()


@pytest.mark.versions
@pytest.mark.slow
def test_a_tool_that_imports_its_toolbox_first(root, environment, tmp_path):
    """It needs the compiled ops of mmcv, or this way to start it."""
    tool = 'mmseg::misc/print_config.py'
    by_itself = [sys.executable, find_tool(tool), root / CONFIG]
    ours = [sys.executable, '-m', 'mdeq_mm', tool, root / CONFIG]
    results = [
        subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, 'PYTHONPATH': str(root)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        for command in (by_itself, ours)
    ]
    assert results[1].returncode == 0, results[1].stderr[-2000:]
    assert "default_scope = 'mmseg'" in results[1].stdout
    assert (results[0].returncode == 0) == mmcv_full_available()
    if not mmcv_full_available():
        assert "No module named 'mmcv._ext'" in results[0].stderr
