"""Commands, configs and tables of the guides are right.

Python blocks with prompts run as doctests, the others in test_guides_run.py. What
trains runs in tests of its own.
"""

import re
import shlex

import pytest
from mmengine.config import Config

from ..isolation import load_tool
from .guides import CHINESE, ENGLISH, PAGES, ROOT, blocks

# What stands for something of the reader's own.
OWN = {'configs/segmentation/mine.py'}


def commands():
    """Returns the words of every command that starts a tool."""
    found = []
    for block in blocks('shell'):
        (text,) = block.values
        for number, line in enumerate(text.replace('\\\n', ' ').splitlines()):
            words = shlex.split(line, comments=True)
            if words[:1] == ['python'] and words[1].startswith('tools/'):
                found.append(pytest.param(words[1:], id=f'{block.id}.{number}'))
    return found


@pytest.mark.parametrize('words', commands())
def test_command(words, tmp_path, monkeypatch):
    """The tool is there and takes these arguments; configs that are named exist."""
    path, *arguments = words
    # Some tools look at once whether there is such a file.
    monkeypatch.chdir(tmp_path)
    for word in arguments:
        if word[0] != '-' and '/' not in word:
            (tmp_path / word).touch()
    tool = load_tool(path.removeprefix('tools/'))
    if hasattr(tool, 'parse_args'):
        tool.parse_args(arguments)
    else:
        assert not arguments
    for word in arguments:
        if word.startswith('configs/') and word not in OWN:
            assert (ROOT / word).exists(), word


def configs():
    return [block for block in blocks('python') if '_base_ = ' in block.values[0]]


@pytest.mark.parametrize('text', configs())
def test_config(text, tmp_path):
    """It can be loaded where the guide says, next to the configs of this project."""
    folder = tmp_path / 'configs/mine'
    folder.mkdir(parents=True)
    for name in ('_base_', 'classification', 'segmentation'):
        (folder.parent / name).symlink_to(ROOT / 'configs' / name)
    path = folder / 'config.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    assert re.search('MDEQ|DEQViT', str(cfg.model))
    assert 'mdeq_mm' in cfg.custom_imports.imports


@pytest.mark.parametrize('text', blocks('python'))
def test_syntax(text):
    if not text.startswith('>>>'):
        compile(text, 'block', 'exec')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_fit_the_screen(page):
    rows = [line for line in page.read_text().splitlines() if line.startswith('|')]
    assert [row for row in rows if len(row) > 120] == []


def test_every_page_is_in_the_contents():
    index = (ROOT / 'docs/en/index.md').read_text()
    for page in ENGLISH:
        name = str(page.relative_to(ROOT / 'docs/en').with_suffix(''))
        assert name == 'index' or f'\n{name}\n' in index, name


def test_blocks_are_found():
    """Without any, the tests above would pass as well."""
    assert len(commands()) > 20
    assert len(configs()) > 3
    assert CHINESE
