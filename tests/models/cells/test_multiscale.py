import pytest
import torch
from torch.nn.utils import parametrize

from mdeq_mm.models import MultiscaleCell


def maps(channels, height=8, width=12, batch_size=2):
    features = []
    for count in channels:
        features.append(torch.randn(batch_size, count, height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return tuple(features)


class TestMultiscaleCell:
    @pytest.mark.parametrize('channels', [(8,), (8, 24), (16, 8, 32), (8, 8, 8, 8, 8)])
    @pytest.mark.parametrize('size', [(16, 16), (17, 31), (33, 47)])
    def test_shapes(self, channels, size):
        cell = MultiscaleCell(channels, num_groups=4)
        states = maps(channels, *size)
        with cell.freeze(states):
            outputs = cell(states, maps(channels, *size))
        assert [z.shape for z in outputs] == [z.shape for z in states]

    def test_options(self):
        cell = MultiscaleCell(
            (8, 16),
            num_blocks=(2, 1),
            num_big_kernels=(1, 2),
            expansion=2,
            num_groups=2,
            post_norm_affine=False,
        )
        assert [len(blocks) for blocks in cell.branches] == [2, 1]
        assert cell.branches[0][1].conv1.kernel_size == (5, 5)
        assert cell.branches[0][0].conv2.kernel_size == (3, 3)
        assert cell.branches[1][0].conv2.kernel_size == (5, 5)
        assert cell.branches[1][0].conv1.out_channels == 32
        assert cell.post_fusion[0][2].num_groups == 1
        assert not cell.post_fusion[0][2].affine
        assert cell.branches[0][0].norm1.num_groups == 2
        outputs = cell(maps((8, 16)), maps((8, 16)))
        assert [z.shape for z in outputs] == [(2, 8, 8, 12), (2, 16, 4, 6)]

    def test_only_the_first_block_takes_the_injection(self):
        cell = MultiscaleCell((8,), num_blocks=(2,))
        z, x = maps((8,)), maps((8,))
        first, second = cell.branches[0]
        torch.testing.assert_close(cell(z, x)[0], second(first(z[0], x[0])))

    def test_one_branch_is_the_residual_block(self):
        cell = MultiscaleCell((8,))
        z, x = maps((8,)), maps((8,))
        torch.testing.assert_close(cell(z, x)[0], cell.branches[0][0](z[0], x[0]))
        assert {name.split('.')[0] for name, _ in cell.named_parameters()} == {
            'branches'
        }

    def test_act_and_conv_cfg(self):
        cell = MultiscaleCell(
            (8, 8),
            act_cfg=dict(type='GELU'),
            conv_cfg=dict(type='Conv2dAdaptivePadding'),
        )
        kinds = {type(module).__name__ for module in cell.modules()}
        assert 'GELU' in kinds
        assert 'ReLU' not in kinds
        assert 'Conv2dAdaptivePadding' in kinds

    def test_masks_are_fixed_while_frozen(self):
        cell = MultiscaleCell((8, 8), dropout=0.5)
        states, injections = maps((8, 8)), maps((8, 8))

        def apply():
            return torch.cat([z.flatten() for z in cell(states, injections)])

        with cell.freeze(injections):
            first = apply()
            assert torch.equal(first, apply())
        with cell.freeze(injections):
            assert not torch.equal(first, apply())

    def test_masks_are_released_after_an_error(self):
        cell = MultiscaleCell((8,), dropout=0.5)
        frozen = cell.freeze(maps((8,)))
        frozen.__enter__()
        assert cell.branches[0][0].dropout.held is not None
        assert frozen.__exit__(KeyError, KeyError(), None) is False
        assert cell.branches[0][0].dropout.held is None

    def test_weights_are_normalised_once(self):
        cell = MultiscaleCell((8, 8))
        n_calls = 0

        def count(module, args, output):
            nonlocal n_calls
            n_calls += 1

        normalised = [m for m in cell.modules() if parametrize.is_parametrized(m)]
        for module in normalised:
            module.parametrizations.weight[0].norm.register_forward_hook(count)
        with cell.freeze(maps((8, 8))):
            for _ in range(5):
                cell(maps((8, 8)), maps((8, 8)))
        assert n_calls == len(normalised) == 6

    def test_first_use_under_no_grad_keeps_the_gradient(self):
        """The order of a solve: many evaluations without a graph, then one with."""
        cell = MultiscaleCell((8, 8))
        states, injections = maps((8, 8)), maps((8, 8))
        with cell.freeze(injections):
            with torch.no_grad():
                cell(states, injections)
            outputs = cell(states, injections)
        sum(z.square().sum() for z in outputs).backward()
        for name, parameter in cell.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(channels=()), 'channels must name at least one branch'),
            (dict(channels=(8, 12)), r'channels must be divisible by num_groups=8'),
            (dict(channels=(9,), num_groups=9), r'channels must be divisible .* by 4'),
            (dict(channels=(8, 8), num_blocks=(1,)), r'num_blocks must .* 2 branches'),
            (dict(channels=(8, 8), num_blocks=(1, 0)), r'num_blocks must .* \(1, 0\)'),
            (
                dict(channels=(8, 8), num_big_kernels=(0, 0, 0)),
                r'num_big_kernels must .* 2 branches',
            ),
            (
                dict(channels=(8,), num_big_kernels=(3,)),
                r'must be 0, 1 or 2, got \(3,\)',
            ),
            (dict(channels=(8,), expansion=0), 'expansion and num_groups .* 0 and 8'),
            (dict(channels=(8,), num_groups=0), 'expansion and num_groups .* 5 and 0'),
            (dict(channels=(8,), dropout=1.5), r'dropout must .* got 1\.5'),
        ],
    )
    def test_wrong_argument(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            MultiscaleCell(**kwargs)
