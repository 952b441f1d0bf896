import cv2
import pytest
import torch

from mdeq_mm.visualization import convergence_figure, plot_convergence


class TestPlotConvergence:
    @pytest.mark.parametrize('marks', [{}, dict(tol=1e-3, max_evals=10)])
    def test_writes_a_picture(self, tmp_path, marks):
        trace = 10 ** -torch.linspace(0, 4, 20).unsqueeze(1) * torch.rand(20, 3)
        plot_convergence(trace, tmp_path / 'plot.png', title='three samples', **marks)
        image = cv2.imread(str(tmp_path / 'plot.png'))
        assert image.shape[0] > 400
        # Three lines in colours of their own.
        colours = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
        assert sum(max(c) - min(c) > 100 for c in colours) >= 3

    def test_samples_that_broke_down(self, tmp_path):
        trace = torch.tensor([[1.0, 1.0], [0.5, torch.inf], [0.25, 1.0]])
        plot_convergence(trace, tmp_path / 'plot.png')
        assert (tmp_path / 'plot.png').stat().st_size > 1000

    def test_single_evaluation_is_a_point(self):
        (axes,) = convergence_figure(torch.tensor([[0.5]])).axes
        assert axes.lines[0].get_marker() == 'o'
