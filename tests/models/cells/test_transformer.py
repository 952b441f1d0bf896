import pytest
import torch
from torch import nn

from mdeq_mm.models import MDEQ, TransformerCell


@pytest.fixture
def cell():
    return TransformerCell((16,), num_heads=4, feedforward_channels=24)


def stock_layer(cell):
    """PyTorch's own post-norm block with the weights of a cell."""
    layer = nn.TransformerEncoderLayer(
        d_model=16,
        nhead=4,
        dim_feedforward=24,
        dropout=0.0,
        activation='gelu',
        layer_norm_eps=1e-6,
        batch_first=True,
    )
    layer.self_attn.in_proj_weight = cell.attention.qkv.weight
    layer.self_attn.in_proj_bias = cell.attention.qkv.bias
    layer.self_attn.out_proj = cell.attention.proj
    layer.linear1, layer.linear2 = cell.feedforward[0], cell.feedforward[2]
    layer.norm1, layer.norm2 = cell.norm1, cell.norm2
    return layer


def test_block_of_pytorch(cell):
    """The same values and gradients, given the sum of state and injection."""
    z, x = torch.randn(2, 16, 3, 5), torch.randn(2, 16, 3, 5)
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.3)
    actual = cell((z,), (x,))[0]
    tokens = (z + x).flatten(2).transpose(1, 2)
    expected = stock_layer(cell)(tokens).transpose(1, 2).reshape(z.shape)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(output.sin().sum(), list(cell.parameters()))
        for output in (actual, expected)
    ]
    for a, e in zip(*gradients):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_maps_are_one_sequence():
    """Positions of all maps attend to each other, whatever their shapes are."""
    cell = TransformerCell((8, 8, 8), num_heads=2)
    alone = TransformerCell((8,), num_heads=2)
    alone.load_state_dict(cell.state_dict())
    shapes = ((8, 3, 4), (8, 2, 2), (8, 1))
    states, injections = (
        tuple(torch.randn(2, *shape) for shape in shapes) for _ in range(2)
    )
    outputs = cell(states, injections)
    assert [z.shape[1:] for z in outputs] == list(shapes)
    z, x, y = (
        torch.cat([part.flatten(2) for part in parts], dim=2)
        for parts in (states, injections, outputs)
    )
    torch.testing.assert_close(y, alone((z,), (x,))[0])


def test_order_of_positions_does_not_matter(cell):
    z, x = torch.randn(2, 16, 7), torch.randn(2, 16, 7)
    order = torch.randperm(7)
    expected = cell((z,), (x,))[0][..., order]
    torch.testing.assert_close(cell((z[..., order],), (x[..., order],))[0], expected)


def test_second_derivative(cell):
    """Jacobian regularisation takes it, and torch's fused attention has none."""
    cell.double()
    x = torch.randn(1, 16, 3, dtype=torch.float64)
    z = torch.randn(1, 16, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda z: cell((z,), (x,))[0], z, fast_mode=True)


def test_dropout_takes_channels_of_all_tokens():
    cell = TransformerCell((16,), dropout=0.5)
    seen = []
    for dropout in (cell.dropout1, cell.dropout2):
        dropout.register_forward_hook(lambda part, args, output: seen.append(output))
    x = (torch.randn(3, 16, 4, 5),)
    with cell.freeze(x):
        cell(x, x)
    assert len(seen) == 2
    for output in seen:
        dropped = (output == 0).all(dim=2)
        assert torch.equal(dropped, (output == 0).any(dim=2))
        assert 0 < dropped.sum() < dropped.numel()


def test_activation():
    cell = TransformerCell((8,), act_cfg=dict(type='ReLU'))
    assert isinstance(cell.feedforward[1], nn.ReLU)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(channels=()), r'channels must be .* same .*num_heads=4, got \(\)'),
        (dict(channels=(8, 16)), r'all the same .* got \(8, 16\)'),
        (dict(channels=(10,)), r'divisible by num_heads=4, got \(10,\)'),
        (dict(channels=(0,)), 'channels of a feature map must be an integer.*got 0'),
        (dict(channels=(8,), num_heads=0), 'num_heads must be an integer.*got 0'),
        (dict(channels=(8,), dropout=1.0), r'dropout .* in \[0, 1\), got 1.0'),
        (
            dict(channels=(8,), feedforward_channels=0),
            'feedforward_channels must be an integer of at least 1 or None, got 0',
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TransformerCell(**kwargs)


def test_in_an_mdeq():
    """Behind a convolutional stem, over two resolutions."""
    cell = dict(type='TransformerCell', channels=(16, 16))
    model = MDEQ(cell=cell)
    outputs = model(torch.rand(2, 3, 33, 40))
    assert [tuple(z.shape) for z in outputs] == [(2, 16, 9, 10), (2, 16, 5, 5)]
    # The coarse branch gets no injection: what it knows comes from the fine one.
    outputs[1].square().sum().backward()
    assert model.stem[0].conv.weight.grad.any()
