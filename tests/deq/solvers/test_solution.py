import torch

from mdeq_mm.deq import LowRankInverse


class TestLowRankInverse:
    def test_products(self):
        basis = torch.randn(2, 3, 5, dtype=torch.float64)
        core = torch.randn(2, 3, 3, dtype=torch.float64)
        x = torch.randn(2, 5, dtype=torch.float64)
        dense = basis.mT @ core @ basis - torch.eye(5)
        inverse = LowRankInverse(basis, core)
        torch.testing.assert_close(inverse.apply(x), (dense @ x[..., None])[..., 0])
        torch.testing.assert_close(
            inverse.apply_transpose(x), (dense.mT @ x[..., None])[..., 0]
        )
