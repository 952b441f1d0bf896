import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from mdeq_mm.deq import (
    Cell,
    EquilibriumLayer,
    PhantomGradient,
    PicardSolver,
    VariationalDropout,
    freezable_weight_norm,
)
from mdeq_mm.deq.parts import assignable_weights, fold_parametrizations


class OnePart(Cell):
    """A cell that applies one module."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, states, injections):
        return (self.part(states[0]),)


class TestVariationalDropout:
    def test_mask_is_kept_while_it_is_held(self):
        cell, x = OnePart(VariationalDropout(0.5, 64)), torch.ones(2, 64, 3, 3)
        with cell.freeze([x]):
            first = cell.part(x)
            assert torch.equal(first, cell.part(x))
        with cell.freeze([x]):
            assert not torch.equal(first, cell.part(x))
        assert cell.part(x) is x

    def test_whole_channels_of_each_sample(self):
        cell, x = OnePart(VariationalDropout(0.25, 500)), torch.ones(4, 500, 3, 3)
        with cell.freeze([x]):
            y = cell.part(x)
        assert (y == y[..., :1, :1]).all()
        assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert not torch.equal(y[0], y[1])
        assert abs((y == 0).float().mean().item() - 0.25) < 0.05

    @pytest.mark.parametrize('shape', [(), (5,), (3, 3), (2, 3, 4)])
    def test_any_trailing_shape(self, shape):
        cell, x = OnePart(VariationalDropout(0.5, 64)), torch.ones(2, 64, *shape)
        with cell.freeze([x]):
            y = cell.part(x)
            assert torch.equal(y.flatten(2).amax(-1) if shape else y, cell.part.held)
        assert y.shape == x.shape

    def test_other_channels_than_the_injection(self):
        cell, x = OnePart(VariationalDropout(0.5, 64)), torch.ones(2, 8, 3, 3)
        with cell.freeze([x]):
            assert cell.part.held.shape == (2, 64)
            assert cell.part(torch.ones(2, 64, 1)).shape == (2, 64, 1)

    def test_some_samples(self):
        part = VariationalDropout(0.5, 64)
        held = part.draw([torch.ones(3, 64)])
        assert torch.equal(part.select(held, torch.tensor([2, 0])), held[[2, 0]])

    @pytest.mark.parametrize('reason', ['evaluation', 'probability'])
    def test_identity(self, reason):
        part = VariationalDropout(0.0 if reason == 'probability' else 0.5, 8)
        cell, x = OnePart(part.train(reason != 'evaluation')), torch.ones(2, 8, 3, 3)
        with cell.freeze([x]):
            assert part(x) is x

    def test_dtypes(self):
        cell, x = OnePart(VariationalDropout(0.5, 8)), torch.ones(2, 8, 3, 3)
        with cell.freeze([x]):
            assert cell.part.held.dtype == torch.float32
            assert cell.part(x.bfloat16()).dtype == torch.bfloat16
        with cell.freeze([x.double()]):
            assert cell.part.held.dtype == torch.float64

    @pytest.mark.parametrize('p', [-0.1, 1.0])
    def test_wrong_probability(self, p):
        with pytest.raises(ValueError, match=rf'dropout must .* got {p}'):
            VariationalDropout(p, 8)

    def test_repr(self):
        assert repr(VariationalDropout(0.5, 8)) == (
            'VariationalDropout(p=0.5, channels=8)'
        )


MODULES = {
    'conv': lambda: nn.Conv2d(4, 6, 3, padding=1),
    'linear': lambda: nn.Linear(4, 6, bias=False),
}


@pytest.fixture(params=MODULES)
def pair(request):
    """A module as torch normalises it, and the same as it can be frozen."""
    plain = MODULES[request.param]()
    freezable = copy.deepcopy(plain)
    return weight_norm(plain), freezable_weight_norm(freezable)


def x_of(module):
    return (
        torch.randn(2, 4, 5, 5) if isinstance(module, nn.Conv2d) else torch.rand(2, 4)
    )


@pytest.mark.versions
class TestFreezableWeightNorm:
    def test_same_keys_and_values(self, pair):
        expected, actual = (module.state_dict() for module in pair)
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert torch.equal(actual[key], value), key
        names = [[name for name, _ in m.named_parameters()] for m in pair]
        assert names[0] == names[1]

    def test_same_output_and_gradient(self, pair):
        x, results = x_of(pair[0]), []
        for module in pair:
            y = module(x)
            grads = torch.autograd.grad(y.square().sum(), list(module.parameters()))
            results.append((y, *grads))
        for expected, actual in zip(*results):
            assert torch.equal(actual, expected)

    @pytest.mark.parametrize('frozen', [False, True])
    def test_weight(self, pair, frozen):
        cell = OnePart(pair[1])
        if not frozen:
            assert torch.equal(pair[1].weight, pair[0].weight)
            return
        with cell.freeze([x_of(pair[1])]):
            assert torch.equal(pair[1].weight, pair[0].weight)
            assert pair[1].weight is pair[1].weight

    def test_checkpoints_of_torchs_older_weight_norm(self, pair):
        """Their keys are ``weight_g`` and ``weight_v``."""
        state = {
            key.replace('parametrizations.weight.original0', 'weight_g').replace(
                'parametrizations.weight.original1', 'weight_v'
            ): 2 * value
            for key, value in pair[0].state_dict().items()
        }
        assert {'weight_g', 'weight_v'} <= set(state)
        for module in pair:
            module.load_state_dict(dict(state))
        assert torch.equal(pair[1].weight, pair[0].weight)
        assert torch.equal(pair[1].parametrizations.weight.original0, state['weight_g'])

    def test_computed_once_per_solve(self):
        conv = freezable_weight_norm(nn.Conv2d(4, 4, 1))
        calls = []
        norm = conv.parametrizations.weight[0]
        norm.register_forward_hook(lambda *args: calls.append(1))
        layer = EquilibriumLayer(
            OnePart(conv), PicardSolver(5, 0.0), PhantomGradient(2)
        )
        for number in (1, 2):
            layer((torch.randn(2, 4, 3, 3),)).features[0].sum().backward()
            assert len(calls) == number
        with layer.using(mode=layer.unrolled):
            layer((torch.randn(2, 4, 3, 3),))
        assert len(calls) == 3

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_autocast_casts_it_once(self, dtype):
        """Autocast leaves float64 alone."""
        conv = freezable_weight_norm(nn.Conv2d(4, 4, 1)).to(dtype)
        x = torch.randn(2, 4, 3, 3, dtype=dtype)
        with torch.autocast('cpu', torch.bfloat16):
            with OnePart(conv).freeze([x]):
                held = conv.weight
                inside = conv(x)
            assert torch.equal(inside, conv(x))
        assert held.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
        inside.sum().backward()
        assert conv.parametrizations.weight.original1.grad.dtype == dtype

    def test_pickle_after_removing_it(self, pair):
        _, mine = pair
        fold_parametrizations(mine)
        copied = pickle.loads(pickle.dumps(mine))
        assert torch.equal(copied.weight, mine.weight)

    def test_removing_it(self, pair):
        weight = pair[1].weight.detach().clone()
        parametrize.remove_parametrizations(pair[1], 'weight')
        assert torch.equal(pair[1].weight, weight)
        assert not parametrize.is_parametrized(pair[1])
        assert OnePart(pair[1]).freeze([x_of(pair[1])]) is not None

    def test_setting_the_weight(self, pair):
        new = torch.randn_like(pair[0].weight)
        for module in pair:
            module.weight = new
        assert torch.equal(pair[1].weight, pair[0].weight)
        torch.testing.assert_close(pair[1].weight, new)

    def test_deepcopy(self, pair):
        twin = copy.deepcopy(pair[1])
        with torch.no_grad():
            twin.parametrizations.weight.original0.mul_(2)
        assert torch.equal(pair[1].weight, pair[0].weight)
        assert torch.equal(twin.weight, 2 * pair[0].weight)
        with OnePart(twin).freeze([x_of(twin)]):
            assert torch.equal(twin.weight, 2 * pair[0].weight)


class TestAssignableWeights:
    @pytest.fixture
    def model(self):
        return nn.Sequential(
            freezable_weight_norm(nn.Conv2d(2, 3, 3)), nn.Conv2d(3, 3, 1)
        )

    def test_a_change_in_place_lasts(self, model):
        with torch.no_grad():
            model[0].weight.fill_(2.0)
            assert (model[0].weight != 2).all()
            with assignable_weights(model):
                model[0].weight.fill_(2.0)
        torch.testing.assert_close(model[0].weight, torch.full((3, 2, 3, 3), 2.0))

    def test_parameters_stay_the_same_objects(self, model):
        before = dict(model.named_parameters())
        with assignable_weights(model), torch.no_grad():
            model[0].weight.fill_(2.0)
        assert all(before[key] is value for key, value in model.named_parameters())

    def test_what_is_not_changed_keeps_its_bits(self, model):
        before = copy.deepcopy(model.state_dict())
        with assignable_weights(model):
            model[0].weight.sum()
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_it_ends_after_an_exception(self, model):
        before = model[0].weight.clone()

        def fail():
            with torch.no_grad(), assignable_weights(model):
                model[0].weight.fill_(2.0)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert torch.equal(model[0].weight, before)
