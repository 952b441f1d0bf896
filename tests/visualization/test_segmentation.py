import cv2
import numpy as np
import pytest
from matplotlib import colormaps

from mdeq_mm.visualization import Sample, paint, plot_segmentations

PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
IMAGE = np.full((4, 6, 3), 100, np.uint8)


class TestPaint:
    def test_colours(self):
        labels = np.zeros((4, 6), np.int64)
        labels[0], labels[1], labels[2] = 1, 2, 255
        painted = paint(IMAGE, labels, PALETTE, opacity=0.5)
        assert painted.dtype == np.uint8
        assert painted[0, 0].tolist() == [178, 50, 50]
        assert painted[1, 0].tolist() == [50, 50, 178]
        assert painted[2, 0].tolist() == [100, 100, 100]
        assert painted[3, 0].tolist() == [50, 50, 50]
        assert (IMAGE == 100).all()

    def test_classes_as_floating_point_numbers(self):
        """What a head with one output channel predicts."""
        labels = np.ones((4, 6), np.int64)
        painted = paint(IMAGE, labels.astype(np.float32), PALETTE)
        np.testing.assert_array_equal(painted, paint(IMAGE, labels, PALETTE))

    def test_wrong_size(self):
        with pytest.raises(ValueError, match=r'\(4, 6\), got \(6, 4\)'):
            paint(IMAGE, np.zeros((6, 4), np.int64), PALETTE)


class TestPlotSegmentations:
    @pytest.mark.parametrize(
        ('truths', 'n_rows'), [((True, True), 3), ((True, False), 3), ((False,) * 2, 2)]
    )
    def test_without_ground_truth(self, tmp_path, truths, n_rows):
        labels = np.ones((4, 6), np.int64)
        samples = [Sample(IMAGE, labels if truth else None, labels) for truth in truths]
        path = tmp_path / 'sheet.png'
        plot_segmentations(samples, path, ('nothing', 'red', 'blue'), PALETTE)
        sheet = cv2.imread(str(path))[..., ::-1]
        painted = paint(IMAGE, labels, PALETTE)[0, 0]
        shares = [
            (sheet == colour).all(axis=2).mean() for colour in (painted, IMAGE[0, 0])
        ]
        # Every prediction and every ground truth is painted, every image is not.
        expected = (len(truths) + sum(truths)) / len(truths)
        assert shares[0] / shares[1] == pytest.approx(expected, rel=0.1)
        assert sheet.shape[0] == pytest.approx(150 * (1 + 1.7 * n_rows), abs=2)

    @pytest.mark.parametrize('n_samples', [1, 5])
    def test_writes_a_picture(self, tmp_path, n_samples):
        labels = np.ones((4, 6), np.int64)
        plot_segmentations(
            [Sample(IMAGE, labels, labels)] * n_samples,
            tmp_path / 'sheet.png',
            classes=('nothing', 'red', 'blue'),
            palette=PALETTE,
            title='a sheet',
        )
        sheet = cv2.imread(str(tmp_path / 'sheet.png'))[..., ::-1].reshape(-1, 3)
        painted = paint(IMAGE, labels, PALETTE)[0, 0]
        shares = [
            (sheet == colour).all(axis=1).mean() for colour in (IMAGE[0, 0], painted)
        ]
        # Two rows are painted, one is not.
        assert shares[1] == pytest.approx(2 * shares[0], rel=0.1)
        assert shares[0] > 0.05

    @pytest.mark.parametrize('side_by_side', [False, True])
    @pytest.mark.parametrize('residual', [None, np.geomspace(1e-3, 1, 6).reshape(2, 3)])
    def test_layout(self, tmp_path, side_by_side, residual):
        labels = np.ones((4, 6), np.int64)
        path = tmp_path / 'sheet.png'
        plot_segmentations(
            [Sample(IMAGE, labels, labels, residual)],
            *(path, ('nothing', 'red', 'blue'), PALETTE),
            height=2,
            side_by_side=side_by_side,
        )
        sheet = cv2.imread(str(path))
        n_pictures = 3 if residual is None else 4
        across, down = (n_pictures, 1) if side_by_side else (1, n_pictures)
        # A bar of the colours of the residual stands beside it.
        margin = 0 if residual is None else 0.9
        expected = 150 * (1 + 2 * down), 150 * (2 * 6 / 4 * across + margin)
        assert sheet.shape[:2] == pytest.approx(expected, abs=2)

    def test_residual(self, tmp_path):
        """Its places lie where they lie in the image, on a logarithmic scale."""
        labels = np.zeros((4, 6), np.int64)
        residual = np.array([[1e-3, 1e-3, 1e-1]])
        path = tmp_path / 'sheet.png'
        plot_segmentations(
            [Sample(IMAGE, None, labels, residual)],
            *(path, ('nothing',), [[0, 200, 0]]),
            side_by_side=True,
        )
        # Without the bar beside it.
        sheet = cv2.imread(str(path))[:, : -int(0.9 * 150), ::-1].astype(int)
        colours = [colormaps['magma'](end, bytes=True)[:3] for end in (0.0, 1.0)]
        places = [np.argwhere((sheet == colour).all(axis=2)) for colour in colours]
        # Two thirds have the darkest colour, and the last third the brightest.
        assert len(places[0]) == pytest.approx(2 * len(places[1]), rel=0.1)
        assert places[0][:, 1].max() < np.median(places[1][:, 1])
        plain = np.argwhere((sheet == 100).all(axis=2))
        # The frame is that of the image: 1.5 times as wide as high.
        assert np.ptp(plain[:, 0]) == pytest.approx(np.ptp(places[1][:, 0]), abs=3)

    def test_residual_of_one_sample_alone(self, tmp_path):
        labels = np.zeros((4, 6), np.int64)
        samples = [
            Sample(IMAGE, None, labels),
            Sample(IMAGE, None, labels, labels + 0.5),
        ]
        plot_segmentations(samples, tmp_path / 'sheet.png', ('a',), [[0, 0, 0]])
        sheet = cv2.imread(str(tmp_path / 'sheet.png'))
        assert sheet.shape[0] == pytest.approx(150 * (1 + 3 * 1.7), abs=2)

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(opacity=1.5), r'opacity must be a number in \[0, 1\], got 1.5'),
            (dict(height=0), 'height must be a positive number, got 0'),
        ],
    )
    def test_bad_arguments(self, tmp_path, options, message):
        labels = np.zeros((4, 6), np.int64)
        path = tmp_path / 'sheet.png'
        with pytest.raises(ValueError, match=message):
            plot_segmentations(
                [Sample(IMAGE, None, labels)], path, ('a',), [[0] * 3], **options
            )
        assert not path.exists()
