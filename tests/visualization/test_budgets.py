import cv2
import pytest

from mdeq_mm.benchmark import BudgetedTest
from mdeq_mm.visualization import plot_budgets

TESTS = [
    BudgetedTest(n, dict(mIoU=40 + n, aAcc=80 + n), n, 10.0**-n, 0.01 * n)
    for n in (1, 3, 6)
]


@pytest.mark.parametrize('settings', [{}, dict(mark=3, metrics=['mIoU'])])
def test_writes_a_picture(tmp_path, settings):
    plot_budgets(TESTS, tmp_path / 'plot.png', title='three budgets', **settings)
    image = cv2.imread(str(tmp_path / 'plot.png'))
    assert image.shape[1] > 2 * image.shape[0] > 800
    # A line in its own colour for each metric.
    colours = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
    blue, orange = (0xB4, 0x77, 0x1F), (0x0E, 0x7F, 0xFF)
    assert blue in colours
    assert (orange in colours) == (settings == {})


def test_unknown_metric(tmp_path):
    with pytest.raises(ValueError, match='must be among mIoU, aAcc, got mAP'):
        plot_budgets(TESTS, tmp_path / 'plot.png', metrics=['mAP'])
