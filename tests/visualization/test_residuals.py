import pytest
import torch

from mdeq_mm.deq import EquilibriumLayer, PhantomGradient, PicardSolver, Unrolled
from mdeq_mm.visualization import recorded_residuals, residual_maps

from ..deq.toys import LinearCell

N_LAYERS = 3


@pytest.fixture
def layer():
    """A layer whose state after a few applications is known."""
    layer = EquilibriumLayer(LinearCell(), PicardSolver(), PhantomGradient())
    layer.mode = Unrolled(N_LAYERS)
    return layer.eval()


@pytest.fixture
def injections():
    """The finer map comes second and has fewer channels, but more places."""
    return torch.rand(2, 40, 2, 3), torch.rand(2, 5, 4, 6)


class TestResidualMaps:
    def test_values(self, layer, injections):
        maps = residual_maps(layer(injections).forward_pass)
        # f(z) = x - z / 2, so f(z) - z = (-1/2)^3 x and f(z) = (1 - (-1/2)^4) x / 1.5.
        length = injections[1].norm(dim=1)
        scale = (1 - 0.5**4) / 1.5 * length.square().mean(dim=(1, 2)).sqrt()
        torch.testing.assert_close(maps, length / 8 / scale[:, None, None])

    def test_mean_square_is_the_residual_of_the_resolution(self, layer, injections):
        with torch.no_grad():
            forward_pass = layer(injections).forward_pass
            before, after = (
                forward_pass.layout.unpack(state)[1].flatten(1)
                for state in (forward_pass.state, forward_pass.f(forward_pass.state))
            )
        expected = (after - before).norm(dim=1) / after.norm(dim=1)
        maps = residual_maps(forward_pass)
        torch.testing.assert_close(maps.square().mean(dim=(1, 2)).sqrt(), expected)

    def test_one_evaluation_and_no_graph(self, layer, injections):
        forward_pass = layer(injections).forward_pass
        before = layer.cell.n_calls
        assert not residual_maps(forward_pass).requires_grad
        assert layer.cell.n_calls == before + 1
        assert forward_pass.linearization is None

    def test_nothing_anywhere(self, layer):
        """No division by zero."""
        zeros = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 2)
        assert (residual_maps(layer(zeros).forward_pass) == 0).all()

    def test_no_images(self, layer):
        forward_pass = layer((torch.rand(2, 3), torch.rand(2, 5))).forward_pass
        with pytest.raises(ValueError, match=r'\(B, C, H, W\), got \(\(3,\), \(5,\)\)'):
            residual_maps(forward_pass)


class TestRecordedResiduals:
    def test_passes_of_the_context(self, layer, injections):
        layer(injections)
        with recorded_residuals(layer) as maps:
            layer(injections)
            layer(injections)
        layer(injections)
        assert [tuple(found.shape) for found in maps] == [(2, 4, 6)] * 2

    def test_ends_with_an_error(self, layer, injections):
        with pytest.raises(RuntimeError, match='stop'), recorded_residuals(layer):
            raise RuntimeError('stop')
        before = layer.cell.n_calls
        layer(injections)
        assert layer.cell.n_calls == before + N_LAYERS
