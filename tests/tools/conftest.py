import pytest


@pytest.fixture
def scenes(load_tool, tmp_path, monkeypatch):
    """The working directory, with a few of the built-in scenes under ``data``."""
    tool = load_tool('dataset_converters/digits.py')
    monkeypatch.setattr(tool, 'N_SCENES', dict(train=2, test=3))
    tool.write_digit_scenes(tmp_path / 'data/digit_scenes')
    return tmp_path
