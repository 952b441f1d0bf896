import pytest


@pytest.fixture
def write_folders(load_tool):
    return load_tool('dataset_converters/folders.py').write_folders


def make(path):
    path.mkdir()
    (path / 'file').touch()


def test_folders_that_are_there_are_left(write_folders, tmp_path, capsys):
    (tmp_path / 'data/old').mkdir(parents=True)
    write_folders(tmp_path / 'data', {'old': make, 'new': make})
    output = capsys.readouterr().out
    assert 'old exists and is left as it is' in output
    assert 'new written' in output
    paths = sorted((tmp_path / 'data').rglob('*'))
    assert [path.name for path in paths] == ['new', 'file', 'old']


def test_interrupted(write_folders, tmp_path):
    """No half of a folder is left."""

    def fail(path):
        make(path)
        raise OSError('no space left')

    with pytest.raises(OSError, match='no space left'):
        write_folders(tmp_path / 'data', {'new': fail})
    assert list((tmp_path / 'data').iterdir()) == []
