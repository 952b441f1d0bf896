"""Bounds of norms, and weights that are scaled down to them."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mdeq_mm.deq import (
    Cell,
    freezable_weight_norm,
    project_weights,
    spectral_norm_bound,
)

pytestmark = pytest.mark.versions


@pytest.mark.parametrize('shape', [(1, 1), (3, 70), (70, 3), (120, 216)])
@pytest.mark.parametrize('scale', [1e-20, 1.0, 1e18])
@pytest.mark.parametrize('kind', ['random', 'flat spectrum', 'rank one'])
def test_bound(shape, scale, kind):
    """Never below the norm, and at most 6 % above, at any scale."""
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    if kind == 'flat spectrum':
        matrix = torch.linalg.qr(matrix).Q
    elif kind == 'rank one':
        matrix = matrix[:, :1] * matrix[:1]
    exact = torch.linalg.matrix_norm(matrix, 2) * scale
    bound = spectral_norm_bound((matrix * scale).float())
    ratio = float(bound / exact)
    assert 1 - 1e-5 < ratio < 1.06
    assert spectral_norm_bound(matrix * scale).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_bound_of_half_precision(dtype):
    matrix = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = torch.linalg.matrix_norm(matrix.float(), 2)
    assert 1 - 1e-5 < float(spectral_norm_bound(matrix) / exact) < 1.06


def test_bound_of_a_flat_spectrum():
    """The worst case, and the figure of the docstring."""
    torch.manual_seed(0)
    bound = spectral_norm_bound(torch.linalg.qr(torch.randn(1280, 1280)).Q)
    assert float(bound) == pytest.approx(1280 ** (1 / 128), abs=1e-3)
    assert float(bound) < 1.06


def test_bound_of_zero():
    assert spectral_norm_bound(torch.zeros(3, 5)) == 0


class Parts(Cell):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.normalised = freezable_weight_norm(nn.Conv2d(4, 6, 3))
        self.linear = nn.Linear(4, 6)
        self.norm = nn.GroupNorm(2, 6)
        self.layer_norm = nn.LayerNorm(6)
        self.plain_norm = nn.GroupNorm(2, 6, affine=False)

    def forward(self, states, injections):
        return states

    def scale(self, factor):
        with torch.no_grad():
            for layer in (self.conv, self.grouped, self.linear):
                layer.weight.mul_(factor)
            self.normalised.parametrizations.weight.original0.mul_(factor)
        return self


def norms(cell):
    layers = cell.conv, cell.grouped, cell.normalised, cell.linear
    return [
        float(torch.linalg.matrix_norm(x.weight.detach().flatten(1), 2)) for x in layers
    ]


class TestProjectWeights:
    @pytest.mark.parametrize('max_norm', [0.5, 2.0])
    def test_large_weights(self, max_norm):
        cell = Parts().scale(100)
        directions = [normalize(x.detach().flatten(), dim=0) for x in cell.parameters()]
        project_weights(cell, max_norm, max_gain=1.0)
        for norm in norms(cell):
            assert 0.94 * max_norm < norm <= max_norm * (1 + 1e-5)
        # Scaled, and nothing else: biases and the directions of normalised weights too.
        for x, direction in zip(cell.parameters(), directions):
            torch.testing.assert_close(
                normalize(x.detach().flatten(), dim=0), direction
            )
        assert all(x.requires_grad for x in cell.parameters())

    @pytest.mark.parametrize('max_norm', [0.3, 0.5, 2.0])
    def test_twice_is_once(self, max_norm):
        """So that a training that resumes goes on with the same bits."""
        cell = Parts().scale(100)
        project_weights(cell, max_norm, max_gain=1.0)
        before = [x.detach().clone() for x in cell.parameters()]
        project_weights(cell, max_norm, max_gain=1.0)
        assert all(torch.equal(x, y) for x, y in zip(cell.parameters(), before))

    @pytest.mark.parametrize('kind', ['spectral', 'older weight norm'])
    def test_weights_computed_in_another_way(self, kind):
        cell = Parts()
        if kind == 'spectral':
            nn.utils.parametrizations.spectral_norm(cell.linear)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                nn.utils.weight_norm(cell.linear)
        with pytest.raises(ValueError, match='linear.weight is computed in another'):
            project_weights(cell, max_norm=0.5, max_gain=1.0)

    def test_small_weights_stay(self):
        cell = Parts()
        before = [x.detach().clone() for x in cell.parameters()]
        project_weights(cell, max_norm=100, max_gain=1.0)
        assert all(torch.equal(x, y) for x, y in zip(cell.parameters(), before))

    def test_gains(self):
        cell = Parts()
        gains = torch.tensor([-3.0, -0.5, 0.0, 0.5, 1.0, 3.0])
        for norm in (cell.norm, cell.layer_norm):
            norm.weight.data.copy_(gains)
            norm.bias.data.fill_(7)
        project_weights(cell, max_norm=0.5, max_gain=1.5)
        for norm in (cell.norm, cell.layer_norm):
            assert norm.weight.tolist() == [-1.5, -0.5, 0, 0.5, 1, 1.5]
            assert norm.bias.tolist() == [7] * 6
