import cv2
import pytest

from mdeq_mm.visualization import plot_evaluations

LINES = {'from the frame before': [9, 3, 3, 9, 4], 'from zero': [9, 9, 8, 9, 9]}


def colourful(path):
    """Number of colours that are far from grey, and of black pixels."""
    image = cv2.imread(str(path)).astype(int)
    spread = image.max(axis=2) - image.min(axis=2)
    colours = {tuple(pixel) for pixel in image[spread > 100].tolist()}
    return len(colours), (image.max(axis=2) < 30).sum()


@pytest.mark.parametrize('number', [1, 2])
def test_lines_have_colours_of_their_own(tmp_path, number):
    lines = dict(list(LINES.items())[:number])
    plot_evaluations(lines, tmp_path / 'plot.png')
    other = {'from zero': LINES['from zero']}
    plot_evaluations(other, tmp_path / 'other.png')
    more = colourful(tmp_path / 'plot.png')[0] > colourful(tmp_path / 'other.png')[0]
    assert more == (number == 2)


def test_marks(tmp_path):
    plot_evaluations(LINES, tmp_path / 'plain.png')
    plot_evaluations(LINES, tmp_path / 'cuts.png', cuts=[3])
    plot_evaluations(LINES, tmp_path / 'budget.png', cuts=[3], max_evals=12)
    plain, cuts, budget = (
        colourful(tmp_path / f'{name}.png')[1] for name in ('plain', 'cuts', 'budget')
    )
    assert plain < cuts < budget
