import math

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn import functional as F
from torch.nn.utils import parametrize

from mdeq_mm.deq import VariationalDropout, project_weights
from mdeq_mm.models import MultiscaleCell
from mdeq_mm.models.cells import MeanOnlyGroupNorm


def maps(channels, height=8, width=12, batch_size=2, dtype=torch.float32):
    features = []
    for count in channels:
        features.append(torch.randn(batch_size, count, height, width, dtype=dtype))
        height, width = (height + 1) // 2, (width + 1) // 2
    return tuple(features)


def enlarge(x, size):
    """Nearest neighbours at a size, by the definition."""
    (height, width), (rows, columns) = x.shape[2:], size
    x = x[:, :, [row * height // rows for row in range(rows)]]
    return x[..., [column * width // columns for column in range(columns)]]


def reference(cell, states, injections):
    """``f`` in plain operations, for one block of 3x3 convolutions per branch."""

    def convolve(x, conv, normalised=False):
        if normalised:
            g = conv.parametrizations.weight.original0
            v = conv.parametrizations.weight.original1
            weight = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        else:
            weight = conv.weight
        return F.conv2d(x, weight, stride=conv.stride, padding=weight.shape[-1] // 2)

    def normalise(x, norm):
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias)

    outputs = []
    for (block,), z, x in zip(cell.branches, states, injections):
        h = normalise(convolve(z, block.conv1, True), block.norm1).relu()
        h = convolve(h, block.conv2, True)
        h = h * block.dropout.held[..., None, None] + x
        h = normalise(h, block.norm2) + z
        outputs.append(normalise(h.relu(), block.norm3))

    def move(x, path, source, target):
        if source > target:
            x = normalise(convolve(x, path.conv), path.gn)
            return enlarge(x, outputs[target].shape[2:])
        for level, step in enumerate(path, source + 1):
            x = normalise(convolve(x, step.conv), step.gn)
            x = x if level == target else x.relu()
        return x

    results = []
    for target, paths in enumerate(cell.fusion):
        total = outputs[target] + sum(
            move(output, path, source, target)
            for source, (output, path) in enumerate(zip(outputs, paths))
            if source != target
        )
        _, conv, norm = cell.post_fusion[target]
        results.append(normalise(convolve(total.relu(), conv, True), norm))
    return results


class TestMultiscaleCell:
    @pytest.mark.parametrize('channels', [(8,), (8, 24), (16, 8, 32), (8, 8, 8, 8, 8)])
    @pytest.mark.parametrize('size', [(16, 16), (17, 31), (33, 47)])
    def test_shapes(self, channels, size):
        cell = MultiscaleCell(channels, num_groups=4)
        states = maps(channels, *size)
        with cell.freeze(states):
            outputs = cell(states, maps(channels, *size))
        assert [z.shape for z in outputs] == [z.shape for z in states]

    @pytest.mark.versions
    @pytest.mark.parametrize('size', [(32, 48), (33, 47), (31, 34)], ids=str)
    def test_values_of_every_path(self, size):
        """Against plain operations, with a nearest neighbour by its definition.

        At 33x47 the third branch has 9 rows. Row 11 of the first is then taken from row
        ``11 * 9 // 33 = 3``. Scaling up by 4 and cropping would take row 2.
        """
        channels = (8, 16, 8, 12)
        cell = MultiscaleCell(channels, expansion=2, num_groups=4, dropout=0.3).double()
        with torch.no_grad():
            for name, parameter in cell.named_parameters():
                if not name.endswith('original1'):
                    parameter.normal_()
        states, injections = (
            maps(channels, *size, dtype=torch.float64) for _ in range(2)
        )
        with cell.freeze(injections):
            actual = cell(states, injections)
            expected = reference(cell, states, injections)
        for a, b in zip(actual, expected):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

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

    def test_is_registered(self):
        assert MODELS.get('MultiscaleCell') is MultiscaleCell

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


def signs(n_channels):
    """Signs that alternate, so that the mean of each group is 0."""
    return (-torch.ones(n_channels, dtype=torch.float64)) ** torch.arange(n_channels)


def lipschitz_bound(n_branches, m, alpha, beta):
    """The bound of a cell of 3x3 kernels in the largest norm of its branches.

    Each convolution has a weight of spectral norm ``m``. A kernel of 3x3 and stride 1
    has nine patches at each place, one of stride 2 at most four, and an upsampling
    copies each place four times. The Lipschitz constants are the roots of that.
    """

    def path(source, target):
        levels = abs(source - target)
        return m * 2**levels if source > target else (2 * m) ** levels

    block = 1 - alpha + alpha * (3 * m) ** 2
    fused = []
    for target in range(n_branches):
        others = [source for source in range(n_branches) if source != target]
        shares = [math.exp(-max(source - target, 0)) for source in others]
        weighted = sum(w * path(source, target) for w, source in zip(shares, others))
        fused.append(1 - beta + beta * weighted / sum(shares))
    return block * max(fused) * m


class TestBounds:
    """Cells whose Lipschitz constant is bounded."""

    OPTIONS = dict(
        norm_type='MeanOnlyGroupNorm', residual_weight=0.5, fusion_weight=0.3
    )

    @torch.no_grad()
    @pytest.mark.parametrize(
        ('n_branches', 'stated'), [(2, 0.82), (3, 0.88), (4, 0.94)]
    )
    @pytest.mark.parametrize('size', [(64, 64), (57, 61)], ids=str)
    def test_contraction(self, n_branches, stated, size):
        """The bounds that the guide states hold, and hardly less would.

        The weights are the worst ones: every kernel is constant, channels alternate in
        sign, so that norms take nothing away, and offsets keep every ReLU active.
        """
        channels = (8,) * n_branches
        cell = MultiscaleCell(channels, expansion=2, num_groups=2, **self.OPTIONS)
        cell.double()
        for module in cell.modules():
            if isinstance(module, torch.nn.Conv2d):
                rows, columns = signs(module.out_channels), signs(module.in_channels)
                ones = torch.ones(3, 3, dtype=rows.dtype)
                weight = torch.einsum('o,i,hw->oihw', rows, columns, ones)
                weight = weight[..., : module.kernel_size[0], : module.kernel_size[1]]
                if parametrize.is_parametrized(module):
                    weights = module.parametrizations.weight
                    weights.original1.copy_(weight)
                    weights.original0.fill_(100)
                else:
                    module.weight.copy_(weight)
            elif isinstance(module, MeanOnlyGroupNorm):
                module.bias.fill_(5)
        project_weights(cell, max_norm=0.5, max_gain=1.0)
        bound = lipschitz_bound(n_branches, 0.5, alpha=0.5, beta=0.3)
        assert bound <= stated < bound + 0.01

        x = maps(channels, *size, batch_size=1, dtype=torch.float64)
        z = tuple(torch.full_like(state, 5) for state in x)
        moved = [state + signs(8)[:, None, None] for state in z]
        steepest = 0.0
        for _ in range(10):
            # Toward what grows most, as power iteration does.
            change = [a - b for a, b in zip(cell(moved, x), cell(z, x))]
            distance = max((a - b).norm() for a, b in zip(moved, z))
            steepest = max(steepest, max(c.norm() for c in change) / distance)
            moved = [state + c / c.norm() for state, c in zip(z, change)]
        assert 0.95 * bound < steepest <= bound * (1 + 1e-4)

        for _ in range(100):
            z = cell(z, x)
        torch.testing.assert_close(cell(z, x), z)

    def test_values(self):
        """A mean in each block and in the fusion."""
        channels = (8, 8, 8)
        options = dict(self.OPTIONS, residual_weight=0.4)
        cell = MultiscaleCell(channels, num_groups=4, **options).double()
        z, x = (maps(channels, dtype=torch.float64) for _ in range(2))
        outputs = []
        for (block,), state, injection in zip(cell.branches, z, x):
            h = block.conv2(block.norm1(block.conv1(state)).relu())
            h = 0.4 * block.norm2(h + injection) + 0.6 * state
            outputs.append(block.norm3(h.relu()))
        e = math.e
        weights = [
            [0.7, 0.3 * e / (e + 1), 0.3 / (e + 1)],
            [0.3 * e / (e + 1), 0.7, 0.3 / (e + 1)],
            [0.15, 0.15, 0.7],
        ]
        for target, actual in enumerate(cell(z, x)):
            total = weights[target][target] * outputs[target]
            for source, path in enumerate(cell.fusion[target]):
                if source != target:
                    term = enlarge(path(outputs[source]), total.shape[2:])
                    total = total + weights[target][source] * term
            torch.testing.assert_close(actual, cell.post_fusion[target](total))

    def test_all_norms(self):
        cell = MultiscaleCell((8, 8, 8), **self.OPTIONS)
        norms = [m for m in cell.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert len(norms) == 3 * 3 + 7 + 3
        assert {type(norm) for norm in norms} == {MeanOnlyGroupNorm}
        assert {norm.num_groups for norm in norms} == {8, 4}

    def test_state_dict(self):
        """The options add no key."""
        plain = MultiscaleCell((8, 16, 8))
        bounded = MultiscaleCell((8, 16, 8), **self.OPTIONS)
        assert list(bounded.state_dict()) == list(plain.state_dict())

    @pytest.mark.parametrize('name', ['residual_weight', 'fusion_weight'])
    @pytest.mark.parametrize('value', [0, -0.1, 1.1, float('nan'), 'half', True])
    def test_wrong_weight(self, name, value):
        with pytest.raises((TypeError, ValueError), match=name):
            MultiscaleCell((8, 8), **{name: value})

    @pytest.mark.parametrize('value', ['BN', 'GroupNorm', None])
    def test_wrong_norm(self, value):
        with pytest.raises(ValueError, match="norm_type.*'GN'.*MeanOnlyGroupNorm"):
            MultiscaleCell((8, 8), norm_type=value)


@pytest.mark.versions
class TestFreezing:
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

    def test_masks_are_drawn_branch_by_branch(self):
        """So that a seed gives the masks that it has always given."""
        cell = MultiscaleCell((8, 16), num_blocks=(2, 1), dropout=0.5)
        injections = maps((8, 16))
        torch.manual_seed(3)
        expected = [torch.empty(2, c).bernoulli_(0.5) * 2 for c in (8, 8, 16)]
        torch.manual_seed(3)
        with cell.freeze(injections):
            dropouts = [m for m in cell.modules() if isinstance(m, VariationalDropout)]
            for dropout, mask in zip(dropouts, expected):
                assert torch.equal(dropout.held, mask)

    def test_masks_are_released_after_an_error(self):
        cell = MultiscaleCell((8,), dropout=0.5)
        dropout = cell.branches[0][0].dropout

        def fail():
            with cell.freeze(maps((8,))):
                assert dropout.held is not None
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert dropout.held is None

    def test_weights_are_normalised_once(self):
        cell = MultiscaleCell((8, 8))
        n_calls = 0

        def count(module, args, output):
            nonlocal n_calls
            n_calls += 1

        normalised = [m for m in cell.modules() if parametrize.is_parametrized(m)]
        for module in normalised:
            module.parametrizations.weight[0].register_forward_hook(count)
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

    def test_checkpointing_freezes_the_recomputation(self):
        """Backward runs when the cell is frozen otherwise, or no more."""
        states, injections = maps((8, 8)), maps((8, 8))
        gradients = []
        for with_cp in (False, True):
            torch.manual_seed(0)
            cell = MultiscaleCell((8, 8), dropout=0.5, with_cp=with_cp)
            with cell.freeze(injections):
                outputs = cell(states, injections)
            with cell.freeze(injections):
                sum(z.square().sum() for z in outputs).backward()
            gradients.append([parameter.grad for parameter in cell.parameters()])
        for expected, actual in zip(*gradients):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(channels=()), 'channels must name at least one branch'),
        (dict(channels=(8, 12)), r'channels must be divisible by num_groups=8'),
        (dict(channels=(9,), num_groups=9), r'channels must be divisible .* by 4'),
        (dict(channels=(0,)), 'channels of a branch must be an integer .* got 0'),
        (dict(channels=(8.0,)), r'channels of a branch must be an integer .* got 8\.0'),
        (dict(channels=(8, 8), num_blocks=(1,)), r'num_blocks must .* 2 branches'),
        (dict(channels=(8, 8), num_blocks=(1, 0)), r'num_blocks .* must .* got 0'),
        (
            dict(channels=(8, 8), num_big_kernels=(0, 0, 0)),
            r'num_big_kernels must .* 2 branches',
        ),
        (dict(channels=(8,), num_big_kernels=(3,)), r'must be one of .*, got 3'),
        (dict(channels=(8,), expansion=0), 'expansion must .* at least 1, got 0'),
        (dict(channels=(8,), num_groups=0), 'num_groups must .* at least 1, got 0'),
        (dict(channels=(8,), dropout=1.5), r'dropout must .* got 1\.5'),
        (dict(channels=(8,), dropout=1), r'dropout must .* \[0, 1\), got 1'),
        (dict(channels=(8,), dropout=-0.1), r'dropout must .* got -0\.1'),
    ],
)
def test_wrong_argument(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiscaleCell(**kwargs)
