import cv2

from mdeq_mm.visualization import plot_bars


def test_bars_of_one_name_have_one_colour(tmp_path):
    values = dict(forward=dict(a=1.0, b=2.0), adjoint=dict(b=1.5))
    plot_bars(values, tmp_path / 'bars.png', 'ratio', 'a title')
    pixels = cv2.imread(str(tmp_path / 'bars.png')).reshape(-1, 3).tolist()
    counts = {}
    for pixel in map(tuple, pixels):
        if max(pixel) - min(pixel) > 100:
            counts[pixel] = counts.get(pixel, 0) + 1
    # The two bars of b are three and a half times as long as the one of a.
    few, many = sorted(counts.values())[-2:]
    assert 3 < many / few < 4
