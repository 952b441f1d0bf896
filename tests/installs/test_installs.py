"""The parts of the check that need no new environment."""

import re

import pytest

from . import run


def test_requirements_are_those_of_the_cells():
    default = run.CELLS['default'].requirements()
    assert all(re.search('==', line) for line in default)
    assert 'mmengine==0.10.7' in default
    assert {'hypothesis==6.170.17', 'torchdeq==0.1.0'} <= set(default)
    assert 'onedl-mmengine==0.10.12' in run.CELLS['onedl'].requirements()


def test_what_is_left_out():
    names = {line.partition('==')[0] for line in run.CELLS['default'].requirements()}
    for cell, absent in (
        ('only mmseg', {'mmpretrain', 'mmdet'}),
        ('only mmpretrain', {'mmsegmentation', 'ftfy', 'regex', 'mmdet'}),
    ):
        lines = run.CELLS[cell].requirements()
        assert {line.partition('==')[0] for line in lines} == names - absent


def test_what_is_not_pinned():
    lines = run.CELLS['newest torch'].requirements()
    assert {'torch', 'torchvision', 'numpy', 'mmengine==0.10.7'} <= set(lines)
    older = run.CELLS['Python 3.10'].requirements()
    assert {'numpy', 'hypothesis', 'torchdeq'} <= set(older)
    assert any(line.startswith('torch==') for line in older)


@pytest.mark.parametrize(
    ('last', 'counts', 'good'),
    [
        ('745 passed, 13 skipped, 9 deselected in 3s', '745 passed, 13 skipped', True),
        ('1 failed, 2 passed in 3s', '1 failed, 2 passed', False),
        ('2 passed, 1 error in 3s', '2 passed, 1 error', False),
        ('no tests ran in 3s', 'no tests ran in 3s', False),
    ],
)
def test_summary(last, counts, good):
    assert run.summary(f'a\n{last}\n') == counts
    result = run.Result('default', '3.11', tests=counts)
    assert result.is_good() == good
    result.trainings['mmseg'] = 'no'
    assert not result.is_good()


def test_a_cell_without_an_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(run, 'find_interpreter', lambda version: None)
    out = tmp_path / 'installs.md'
    assert run.main(['--only', 'Python 3.13', '--out', str(out)]) == 0
    assert '| Python 3.13 | 3.13 | no interpreter |' in out.read_text()


def test_no_such_interpreter():
    assert run.find_interpreter('3.99') is None


def test_unknown_cell(capsys):
    with pytest.raises(SystemExit):
        run.main(['--only', 'Python 2'])
    assert 'must be of default, classic' in capsys.readouterr().err
