import pytest
import torch
from torch.nn import functional as F

from mdeq_mm.models.cells import ResidualBlock


class TestResidualBlock:
    def test_against_plain_operations(self):
        block = ResidualBlock(16, expansion=3, num_groups=4)
        z, x = torch.randn(2, 2, 16, 7, 5)
        h = F.conv2d(z, block.conv1.weight, padding=1)
        h = F.group_norm(h, 4).relu()
        h = F.conv2d(h, block.conv2.weight, padding=1) + x
        h = (F.group_norm(h, 4) + z).relu()
        torch.testing.assert_close(block(z, x), F.group_norm(h, 4))

    def test_without_injection(self):
        block = ResidualBlock(16)
        z = torch.randn(2, 16, 7, 5)
        torch.testing.assert_close(block(z), block(z, torch.zeros_like(z)))

    @pytest.mark.parametrize(
        ('num_big_kernels', 'sizes'), [(0, (3, 3)), (1, (5, 3)), (2, (5, 5))]
    )
    def test_big_kernels(self, num_big_kernels, sizes):
        block = ResidualBlock(16, num_big_kernels=num_big_kernels)
        assert (block.conv1.kernel_size[0], block.conv2.kernel_size[0]) == sizes
        assert block(torch.randn(1, 16, 7, 5)).shape == (1, 16, 7, 5)

    def test_only_convolutions_are_weight_normalised(self):
        names = {name for name, _ in ResidualBlock(16).named_parameters()}
        normalised = {
            f'{conv}.parametrizations.weight.original{i}'
            for conv in ('conv1', 'conv2')
            for i in (0, 1)
        }
        norms = {f'norm{i}.{name}' for i in (1, 2, 3) for name in ('weight', 'bias')}
        assert names == normalised | norms
