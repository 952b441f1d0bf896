import pytest
import torch

from mdeq_mm.models import MDEQFuse


class TestMDEQFuse:
    @pytest.mark.parametrize('sizes', [(16, 8, 4), (17, 9, 5), (7, 4, 2)])
    def test_shapes(self, sizes):
        neck = MDEQFuse((8, 16, 32), (4, 8, 16), 50)
        inputs = [torch.rand(2, c, s, s) for c, s in zip((8, 16, 32), sizes)]
        (output,) = neck(inputs)
        assert output.shape == (2, 50, sizes[-1], sizes[-1])

    def test_one_branch(self):
        (output,) = MDEQFuse((8,), (4,), 50)([torch.rand(2, 8, 4, 4)])
        assert output.shape == (2, 50, 4, 4)

    def test_projection_only_where_widths_differ(self):
        neck = MDEQFuse((16, 16), (4, 8), 50)
        assert len(neck.increase[0].projection) == 0
        assert len(neck.increase[1].projection) == 2

    def test_initialisation(self):
        neck = MDEQFuse((32, 64), (14, 28), 200)
        neck.init_weights()
        for conv in (neck.increase[1].conv2[0], neck.downsample[0][0], neck.final[0]):
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)

    def test_other_norm(self):
        neck = MDEQFuse((8, 8), (4, 4), 16, norm_cfg=dict(type='GN', num_groups=2))
        neck([torch.rand(1, 8, 4, 4), torch.rand(1, 8, 2, 2)])
        assert not list(neck.buffers())

    def test_wrong_lists(self):
        with pytest.raises(
            ValueError, match=r'head_channels must .*\(8, 16\), got \(4,'
        ):
            MDEQFuse((8, 16), (4,), 50)

    def test_wrong_number_of_inputs(self):
        neck = MDEQFuse((8, 16), (4, 8), 50)
        with pytest.raises(ValueError, match='made for 2 branches, got 1'):
            neck([torch.rand(1, 8, 4, 4)])

    def test_wrong_sizes(self):
        neck = MDEQFuse((8, 16), (4, 8), 50)
        with pytest.raises(ValueError, match=r'half the size .* \(1, 16, 4, 3\)\]'):
            neck([torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 3)])
