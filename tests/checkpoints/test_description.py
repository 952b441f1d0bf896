"""The model that an official state dict is told to belong to."""

from dataclasses import replace

import pytest
import torch

from mdeq_mm.checkpoints import describe_official_state_dict
from mdeq_mm.models import MDEQ


def resized(tensor):
    """The same with one more entry in each dimension; a number becomes a vector."""
    return tensor.new_zeros([size + 1 for size in tensor.shape] or [1])


def keys(widths, settings):
    """State dict of an official classifier, as far as the description needs it."""
    model = MDEQ(arch=settings)
    cell = model.equilibrium.cell
    state = {
        f'downsample.{3 * i}.weight': c.conv.weight for i, c in enumerate(model.stem)
    }
    if len(model.injection):
        state['stage0.0.weight'] = model.injection[0].conv.weight
    for i, blocks in enumerate(cell.branches):
        for j, block in enumerate(blocks):
            prefix = f'fullstage.branches.{i}.blocks.{j}'
            for conv in ('conv1', 'conv2'):
                parts = getattr(block, conv).parametrizations.weight
                state[f'{prefix}.{conv}.weight_g'] = parts.original0
                state[f'{prefix}.{conv}.weight_v'] = parts.original1
            for norm in '123':
                gn = getattr(block, f'norm{norm}')
                state[f'{prefix}.gn{norm}.weight'] = gn.weight
    if cell.post_fusion[0][2].affine:
        state['fullstage.post_fuse_layers.0.gnorm.weight'] = torch.zeros(1)
    head_channels, out_channels, num_classes = widths
    for i, width in enumerate(head_channels):
        state[f'incre_modules.{i}.0.bn1.running_mean'] = torch.zeros(width)
    state['final_layer.1.weight'] = torch.zeros(out_channels)
    state['classifier.weight'] = torch.zeros(num_classes, out_channels)
    return state


IMAGENET = ((24, 48, 96, 192), 2048, 1000)
CIFAR = ((14, 28, 56, 112), 1680, 10)
OWN = ((4, 4, 8, 8), 48, 5)


class TestGolden:
    def test_settings(self, golden):
        config = golden.config
        told = describe_official_state_dict(golden.state)
        assert told.task == golden.task
        assert list(told.channels) == config['num_channels']
        assert told.num_blocks == (1,) * golden.n_branches
        assert told.num_big_kernels == (0,) * golden.n_branches
        assert told.expansion == config['expansion']
        assert told.post_norm_affine == config['post_gn_affine']
        assert told.num_classes == config['num_classes']
        if golden.task == 'classification':
            assert list(told.head_channels) == config['head_channels']
            assert told.out_channels == config['final_chansize']
        # Four branches with a head of their own: the strides have no trace.
        times = None if golden.name == 'micro4' else config['downsample_times']
        assert told.downsample_times == times
        parameters = [golden.state[str(name)] for name in golden.ref['param_names']]
        assert told.num_parameters == sum(p.numel() for p in parameters)

    def test_one_wrong_tensor_changes_nothing(self, golden):
        """So that a message names it, and not all the others."""
        told = replace(describe_official_state_dict(golden.state), num_parameters=0)
        last = 'classifier' if golden.task == 'classification' else 'last_layer.3'
        for key, tensor in golden.state.items():
            rest = {k: v for k, v in golden.state.items() if k != key}
            found = describe_official_state_dict(rest)
            assert replace(found, num_parameters=0) == told, key
            # With two votes for the classes the first counts.
            if key != f'{last}.weight':
                rest = {**golden.state, key: resized(tensor)}
                found = describe_official_state_dict(rest)
                assert replace(found, num_parameters=0) == told, key


class TestArch:
    @pytest.mark.parametrize(
        ('name', 'widths'),
        [
            ('tiny', ((8, 16), 200, 10)),
            ('cifar-large', CIFAR),
            ('small', IMAGENET),
            ('large', ((32, 64, 128, 256), 2048, 1000)),
        ],
    )
    def test_named(self, name, widths):
        told = describe_official_state_dict(keys(widths, name))
        assert told.arch == name

    @pytest.mark.parametrize(
        ('arch', 'widths', 'times'),
        [
            (dict(channels=(24, 24), downsample_times=0), ((8, 16), 200, 10), 0),
            # CIFAR LARGE of 2020 has the shapes of ImageNet SMALL but for the head.
            (dict(channels=(32, 64, 128, 256), downsample_times=0), CIFAR, 0),
            (dict(channels=(32, 64, 128, 256), post_norm_affine=False), IMAGENET, 2),
            (dict(channels=(8, 16, 24, 32), expansion=2), OWN, None),
            (dict(channels=(8, 16, 24, 32), downsample_times=3), OWN, 3),
            (
                dict(
                    channels=(8, 16, 24),
                    num_blocks=(1, 2, 1),
                    num_big_kernels=(2, 1, 0),
                    expansion=3,
                ),
                ((4, 4, 8), 2048, 5),
                2,
            ),
        ],
    )
    def test_dict(self, arch, widths, times):
        told = describe_official_state_dict(keys(widths, arch))
        assert told.arch == arch
        assert told.downsample_times == times
        assert told.head_channels == widths[0]
        assert (told.out_channels, told.num_classes) == widths[1:]


class TestErrors:
    def test_foreign(self):
        state = {'conv1.weight': torch.zeros(1), 'bn1.weight': torch.zeros(1)}
        with pytest.raises(ValueError, match='this one has neither: conv1.weight, bn1'):
            describe_official_state_dict(state)

    def test_a_classifier_of_another_kind(self):
        with pytest.raises(ValueError, match='no keys fullstage.branches'):
            describe_official_state_dict({'classifier.weight': torch.zeros(10, 4)})

    def test_whole_parts_are_missing(self, golden):
        state = {key: v for key, v in golden.state.items() if '.blocks.0.' not in key}
        state['fullstage.branches.0.blocks.1.gn1.weight'] = torch.zeros(1)
        with pytest.raises(
            ValueError, match='missing: .*branches.0.blocks.0.gn3.weight'
        ):
            describe_official_state_dict(state)
