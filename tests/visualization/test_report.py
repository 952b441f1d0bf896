import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from mdeq_mm.visualization import ReportCase, report, write_report

FILES = ['residuals.png', 'slow_places.png', 'features.png', 'adjoint.png']


class Page(HTMLParser):
    """Collects the tags and the text of a page, and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text = [], [], ''
        self._open = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == 'img':
            self.images.append(dict(attributes)['src'])
        elif tag not in ('meta', 'br'):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def case(examined):
    prediction = np.full((4, 6, 3), (250, 0, 0), np.uint8)
    shares = [('cat & dog', 0.75), ('<b>', 0.25)]
    return ReportCase(examined, prediction, shares, {'<b>': (1, 2, 3)})


class TestWriteReport:
    def test_files(self, tmp_path, case):
        files = write_report(tmp_path / 'new/folder', {'Picard': case}, 'an image')
        names = [*FILES, 'prediction_1.png', 'report.html']
        assert [path.name for path in files] == names
        assert sorted(path.name for path in (tmp_path / 'new/folder').iterdir()) == (
            sorted(names)
        )
        assert cv2.imread(str(files[-2]))[0, 0].tolist() == [0, 0, 250]

    def test_page_needs_nothing_else(self, tmp_path, case):
        *pictures, path = write_report(tmp_path, {'Picard': case}, 'an image')
        text = path.read_text()
        page = Page(text)
        assert not {'script', 'link', 'iframe'} & {*page.tags}
        assert 'http' not in text.replace('http-equiv', '')
        prefix = 'data:image/png;base64,'
        assert all(image.startswith(prefix) for image in page.images)
        inside = {base64.b64decode(image[len(prefix) :]) for image in page.images}
        assert inside == {picture.read_bytes() for picture in pictures}

    def test_numbers(self, tmp_path, case):
        *_, path = write_report(tmp_path, {'Picard': case}, 'an image')
        text = ' '.join(Page(path.read_text()).text.split())
        for part in (
            'PicardSolver',
            '12 evaluations, 0.01 (rel)',
            'converged: the residual is within the tolerance',
            'spectral radius',
            '0.5',
            'random direction',
            'branch 1: 2 x 4x6',
        ):
            assert part in text

    def test_names_are_escaped(self, tmp_path, case):
        *_, path = write_report(tmp_path, {'<a>': case}, '1 < 2')
        page = Page(path.read_text())
        assert '75.0% cat & dog' in page.text
        assert '25.0% <b>' in page.text
        assert '1 < 2' in page.text
        assert not {'a', 'b'} & {*page.tags}
        assert 'background: rgb(1, 2, 3)' in path.read_text()

    def test_colours_are_no_markup(self, tmp_path, case):
        """They come from a checkpoint, which may be a stranger's."""
        colours = {'<b>': ('0)"><script>alert(1)</script>', 0, 0)}
        with pytest.raises(ValueError, match='script'):
            write_report(tmp_path, {'a': replace(case, colours=colours)}, 'an image')
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize('name', ['$x_{$', '$$'])
    def test_names_are_no_formulas(self, tmp_path, case, name):
        *_, path = write_report(tmp_path, {name: case, 'b': case}, 'an image')
        assert name in Page(path.read_text()).text

    def test_two_cases(self, tmp_path, case):
        *_, path = write_report(tmp_path, {'one': case, 'two': case}, 'an image')
        page = Page(path.read_text())
        assert len(page.images) == 6
        assert re.search(r'one\s*two', page.text)
        assert (tmp_path / 'prediction_2.png').exists()

    def test_nothing_half_written(self, tmp_path, case, monkeypatch):
        def fail(image):
            raise MemoryError

        monkeypatch.setattr(report, 'picture_features', fail)
        with pytest.raises(MemoryError):
            write_report(tmp_path / 'folder', {'one': case}, 'an image')
        assert not (tmp_path / 'folder').exists()
