import pytest
import torch
from torch import nn

from mdeq_mm.models.cells import ResidualBlock, VariationalDropout


class TestVariationalDropout:
    def test_mask_is_kept_while_it_is_held(self):
        dropout = VariationalDropout(0.5, 64)
        x = torch.ones(2, 64, 3, 3)
        dropout.held = dropout.draw(2, x.device, x.dtype)
        first = dropout(x)
        assert torch.equal(first, dropout(x))
        dropout.held = dropout.draw(2, x.device, x.dtype)
        assert not torch.equal(first, dropout(x))
        dropout.held = None
        assert dropout(x) is x

    def test_whole_channels_of_each_sample(self):
        dropout = VariationalDropout(0.25, 500)
        x = torch.ones(4, 500, 3, 3)
        dropout.held = dropout.draw(4, x.device, x.dtype)
        y = dropout(x)
        assert (y == y[..., :1, :1]).all()
        assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert not torch.equal(y[0], y[1])
        assert abs((y == 0).float().mean().item() - 0.25) < 0.05

    def test_evaluation_is_the_identity(self):
        dropout = VariationalDropout(0.5, 8).eval()
        x = torch.ones(2, 8, 3, 3)
        dropout.held = dropout.draw(2, x.device, x.dtype)
        assert dropout(x) is x

    def test_keeps_the_dtype(self):
        dropout = VariationalDropout(0.5, 8)
        dropout.held = dropout.draw(2, torch.device('cpu'), torch.float32)
        assert dropout(torch.ones(2, 8, 3, 3).bfloat16()).dtype == torch.bfloat16

    @pytest.mark.parametrize('p', [-0.1, 1.0])
    def test_wrong_probability(self, p):
        with pytest.raises(ValueError, match=rf'dropout must .* got {p}'):
            VariationalDropout(p, 8)


class TestResidualBlock:
    def test_against_plain_operations(self):
        block = ResidualBlock(16, expansion=3, num_groups=4)
        z, x = torch.randn(2, 2, 16, 7, 5)
        h = nn.functional.conv2d(z, block.conv1.weight, padding=1)
        h = nn.functional.group_norm(h, 4).relu()
        h = nn.functional.conv2d(h, block.conv2.weight, padding=1) + x
        h = (nn.functional.group_norm(h, 4) + z).relu()
        torch.testing.assert_close(block(z, x), nn.functional.group_norm(h, 4))

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
