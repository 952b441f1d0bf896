import json
import tempfile

import pytest


@pytest.fixture
def notebook(root):
    return json.loads((root / 'demo/mdeq_tutorial.ipynb').read_text())


@pytest.fixture
def code(notebook):
    """The cells of code."""
    return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def test_nothing_is_stored(code):
    assert len(code) > 8
    for cell in code:
        assert (cell['outputs'], cell['execution_count']) == ([], None)


def test_links(root, notebook):
    (links,) = [
        ''.join(cell['source'])
        for cell in notebook['cells']
        if '](../' in ''.join(cell['source'])
    ]
    pages = [part.partition(')')[0] for part in links.split('](../')[1:]]
    assert len(pages) > 2
    for page in pages:
        assert (root / page).is_file(), page


@pytest.mark.slow
def test_it_runs(code, tmp_path, monkeypatch):
    """From top to bottom, in one namespace, as in Jupyter."""
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    namespace = {'__name__': '__main__'}
    for cell in code:
        exec(compile(''.join(cell['source']), cell['id'], 'exec'), namespace)
    assert namespace['accuracy'] > 60
    assert namespace['trace'].shape == (25, 5)
    assert namespace['trace'][-1].max() < namespace['trace'][0].min()
    assert len(namespace['prediction'].solves) == 1
