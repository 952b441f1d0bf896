import cv2
import numpy as np
import pytest

from mdeq_mm.visualization import paint, plot_segmentations

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
        samples = [(IMAGE, labels if truth else None, labels) for truth in truths]
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
            [(IMAGE, labels, labels)] * n_samples,
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
