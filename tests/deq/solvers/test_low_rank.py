from dataclasses import FrozenInstanceError

import pytest
import torch

from mdeq_mm.deq import LowRankInverse
from mdeq_mm.deq.solvers.low_rank import add_combination_, allocate, batched_dots

DTYPES = ['float32', 'bfloat16']


@pytest.mark.parametrize('size', [3, 8, 100])
@pytest.mark.parametrize('dtype', DTYPES)
class TestProducts:
    def test_dot(self, size, dtype):
        rows = torch.randn(2, 5, size).to(getattr(torch, dtype))
        xs = torch.randn(2, size), rows[:, 2]
        for x, products in zip(xs, batched_dots(rows, *xs)):
            expected = torch.einsum('bmn,bn->bm', rows.double(), x.double())
            torch.testing.assert_close(products, expected.float())

    def test_combination(self, size, dtype):
        rows = torch.randn(2, 5, size).to(getattr(torch, dtype))
        x, weights = torch.randn(2, size), torch.randn(2, 5)
        expected = x + torch.einsum('bmn,bm->bn', rows.double(), weights.double())
        assert add_combination_(x, weights, rows) is x
        torch.testing.assert_close(x, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('dtype', 'expected'), [(None, torch.float64), ('bfloat16', torch.bfloat16)]
)
def test_room(dtype, expected):
    room = allocate(torch.zeros(2, 7, dtype=torch.float64), 3, dtype)
    assert room.shape == (2, 3, 7)
    assert room.dtype == expected


class TestLowRankInverse:
    @pytest.fixture
    def inverse(self):
        basis = torch.randn(2, 3, 5, dtype=torch.float64)
        return LowRankInverse(basis, torch.randn(2, 3, 3, dtype=torch.float64))

    def test_products(self, inverse):
        x = torch.randn(2, 5, dtype=torch.float64)
        dense = inverse.basis.mT @ inverse.core @ inverse.basis - torch.eye(5)
        torch.testing.assert_close(inverse.apply(x), (dense @ x[..., None])[..., 0])
        torch.testing.assert_close(
            inverse.apply_transpose(x), (dense.mT @ x[..., None])[..., 0]
        )

    def test_products_under_autocast(self, inverse):
        # Autocast leaves float64 alone.
        inverse = LowRankInverse(inverse.basis.float(), inverse.core)
        x = torch.randn(2, 5)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = inverse.apply(x)
        assert torch.equal(found, inverse.apply(x))

    def test_cannot_be_set(self, inverse):
        with pytest.raises(FrozenInstanceError):
            inverse.core = None
