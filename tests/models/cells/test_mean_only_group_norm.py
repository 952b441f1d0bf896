import pytest
import torch
from mmcv.cnn import build_norm_layer
from torch.nn import functional as F

from mdeq_mm.models.cells import MeanOnlyGroupNorm


@pytest.fixture
def x():
    return torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(0)) + 2


def test_values(x):
    norm = MeanOnlyGroupNorm(6, num_groups=2)
    norm.weight.data = torch.arange(6.0)
    norm.bias.data = torch.arange(6.0) - 3
    # Group norm is the same, divided by the standard deviation.
    groups = x.reshape(3, 2, -1)
    std = groups.std(-1, correction=0).repeat_interleave(3, 1)[..., None, None]
    expected = F.group_norm(x, 2, eps=0) * std
    for channel in range(6):
        expected[:, channel] *= channel
        expected[:, channel] += channel - 3
    torch.testing.assert_close(norm(x), expected)


def test_without_affine_parameters(x):
    norm = MeanOnlyGroupNorm(6, num_groups=3, affine=False)
    assert not list(norm.parameters())
    groups = norm(x).reshape(3, 3, -1)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(3, 3), atol=1e-6, rtol=0)
    # A projection: twice is once, and nothing grows.
    torch.testing.assert_close(norm(norm(x)), norm(x))
    assert norm(x).norm() <= x.norm()


def test_small_inputs_stay_small(x):
    norm = MeanOnlyGroupNorm(6, num_groups=2)
    torch.testing.assert_close(1e6 * norm(1e-6 * x), norm(x))


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_dtype_of_the_input(x, dtype, affine):
    """As group norm does, whatever the dtype of the parameters."""
    norm = MeanOnlyGroupNorm(6, num_groups=2, affine=affine)
    out = norm(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), norm(x), atol=0.05, rtol=0.02)


@pytest.mark.parametrize('affine', [True, False])
def test_gradients(x, affine):
    norm = MeanOnlyGroupNorm(6, num_groups=2, affine=affine).double()
    for parameter in norm.parameters():
        parameter.data.uniform_(-2, 2)
    x = x[:2, :, :2, :3].double().requires_grad_()
    inputs = (x, *norm.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: norm(x), inputs)


def test_as_layer_of_mmcv():
    cfg = dict(type='MeanOnlyGroupNorm', num_groups=2, affine=False)
    name, norm = build_norm_layer(cfg, 6, postfix=1)
    assert name == 'gn1'
    assert isinstance(norm, MeanOnlyGroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.affine) == (2, 6, False)
