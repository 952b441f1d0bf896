import math

import pytest
import torch

from mdeq_mm.deq import spectral_radius, squared_frobenius_norm


def linear(matrices):
    """``z`` and ``f(z) = A z`` for one matrix per sample."""
    z = torch.randn(len(matrices), matrices.shape[1], dtype=matrices.dtype)
    z.requires_grad_()
    return (matrices @ z.unsqueeze(2)).squeeze(2), z


def rotation(radius, angle, dim):
    """A complex pair of the given modulus above a real spectrum up to half of it."""
    matrix = torch.diag(torch.linspace(0, radius / 2, dim, dtype=torch.float64))
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    matrix[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    basis = torch.randn(dim, dim, dtype=torch.float64)
    return basis @ matrix @ torch.linalg.inv(basis)


class TestSquaredFrobeniusNorm:
    @pytest.mark.parametrize(
        'n_draws', [200, pytest.param(2000, marks=pytest.mark.slow)]
    )
    def test_unbiased(self, n_draws):
        matrices = torch.randn(3, 8, 8, dtype=torch.float64)
        fz, z = linear(matrices)
        draws = torch.stack([squared_frobenius_norm(fz, z, 1) for _ in range(n_draws)])
        exact = matrices.square().sum((1, 2))
        error = draws.mean(0) - exact
        assert (error.abs() < 3 * draws.std(0) / math.sqrt(len(draws))).all()

    def test_num_vectors_are_averaged(self):
        fz, z = linear(torch.randn(2, 8, 8, dtype=torch.float64))
        torch.manual_seed(1)
        single = [squared_frobenius_norm(fz, z, 1) for _ in range(3)]
        torch.manual_seed(1)
        together = squared_frobenius_norm(fz, z, 3)
        torch.testing.assert_close(together, torch.stack(single).mean(0))

    def test_gradient(self):
        torch.manual_seed(2)
        z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

        def estimate(weight):
            torch.manual_seed(3)
            return squared_frobenius_norm(torch.tanh(z @ weight), z, 2, True).sum()

        assert torch.autograd.gradcheck(estimate, weight)

    def test_no_graph_unless_asked_for(self):
        fz, z = linear(torch.randn(2, 4, 4))
        assert not squared_frobenius_norm(fz, z).requires_grad


class TestSpectralRadius:
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize('angle', [0.0, 1.0, math.pi / 2])
    def test_complex_pairs(self, angle, dtype):
        matrices = torch.stack([rotation(r, angle, 40) for r in (0.3, 0.9, 1.4)])
        fz, z = linear(matrices.to(dtype))
        expected = torch.tensor([0.3, 0.9, 1.4], dtype=dtype)
        torch.testing.assert_close(spectral_radius(fz, z), expected, rtol=1e-3, atol=0)

    def test_space_of_few_dimensions(self):
        fz, z = linear(torch.tensor([[[0.0, 1.0], [-0.25, 0.0]]]))
        assert spectral_radius(fz, z).item() == pytest.approx(0.5, rel=1e-5)

    def test_zero(self):
        fz, z = linear(torch.zeros(1, 6, 6))
        assert spectral_radius(fz, z).item() == 0

    def test_invariant_space(self):
        # Every vector is an eigenvector, so that the Krylov space has one dimension.
        fz, z = linear(0.7 * torch.eye(6).expand(2, 6, 6))
        torch.testing.assert_close(spectral_radius(fz, z), torch.full((2,), 0.7))

    def test_a_sample_does_not_see_the_others(self):
        matrices = torch.stack([rotation(r, 1.0, 12) for r in (0.5, 0.8)]).float()
        matrices[1] = torch.nan
        radius = spectral_radius(*linear(matrices))
        assert radius[0].item() == pytest.approx(0.5, rel=1e-3)
        assert radius[1].isnan()
