"""Weights of another model are an error, the same ones in other wrappings are not."""

from collections import OrderedDict

import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel
from torch import nn

from mdeq_mm.checkpoints import is_sharded, load_weights, matching


class Model(BaseModel):
    def __init__(self, width=3, **others):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(2, width, 1), nn.BatchNorm2d(width))
        for name, module in others.items():
            setattr(self, name, module)

    def forward(self, inputs):
        return self.backbone(inputs)


class Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def same(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values())
    return all(torch.equal(*pair) for pair in pairs)


@pytest.fixture
def source():
    torch.manual_seed(1)
    return Model()


def state_dict(model):
    return model.state_dict()


def training(model):
    return dict(state_dict=model.state_dict(), meta={}, optimizer={})


def in_data_parallel(model):
    return dict(state_dict=nn.DataParallel(model).state_dict())


def without_counters(model):
    state = model.state_dict()
    return {k: v for k, v in state.items() if 'num_batches_tracked' not in k}


def with_auxiliary_head(model):
    return {**model.state_dict(), 'auxiliary_head.conv.weight': torch.zeros(1)}


class TestSameWeights:
    @pytest.mark.parametrize(
        'wrap',
        [state_dict, training, in_data_parallel, without_counters, with_auxiliary_head],
    )
    @pytest.mark.parametrize('kind', [Model, lambda: Augmented(module=Model())])
    def test_loads(self, source, wrap, kind):
        model = kind()
        checkpoint = wrap(source)
        load_weights(model, checkpoint, 'a.pth')
        assert same(getattr(model, 'module', model), source)
        # The checkpoint is as before, for the hooks after this one.
        assert checkpoint.keys() == wrap(source).keys()

    def test_head_for_a_loss_alone(self, source):
        model = Model(auxiliary_head=nn.Linear(1, 1))
        load_weights(model, source.state_dict(), 'a.pth')
        with pytest.raises(ValueError, match='2 missing: auxiliary_head.weight'):
            load_weights(model, source.state_dict(), 'a.pth', but=())

    def test_versions_of_modules_are_kept(self, source):
        state = source.state_dict()
        seen = []
        model = Model()
        model.backbone[1].register_load_state_dict_post_hook(
            lambda module, keys: seen.append(keys)
        )
        # Without its version a norm takes the state for an old one, with no counter.
        del state['backbone.1.num_batches_tracked']
        load_weights(model, state, 'a.pth')
        assert seen[0].missing_keys == ['backbone.1.num_batches_tracked']

    def test_leaves_no_hook(self, source):
        load_weights(source, source.state_dict(), 'a.pth')
        assert not source._load_state_dict_post_hooks


class TestOtherWeights:
    @pytest.mark.parametrize(
        ('checkpoint', 'messages'),
        [
            pytest.param({'a': 1}, ['6 missing: backbone.0.weight', '1 unexpected: a']),
            pytest.param({}, ['6 missing: backbone.0.weight, backbone.0.bias']),
            pytest.param(
                Model(5).state_dict(),
                ['6 misshapen: size mismatch for backbone.0.weight', '[5, 2, 1, 1]'],
            ),
            pytest.param(
                Model(head=nn.Linear(1, 2)).state_dict(),
                ['2 unexpected: head.weight, head.bias'],
            ),
            pytest.param(
                OrderedDict((f'{k}x', v) for k, v in Model().state_dict().items()),
                ['6 missing', '7 unexpected: backbone.0.weightx'],
            ),
            pytest.param(
                {**Model().state_dict(), 'backbone.0.bias': 'text'},
                ['1 misshapen: ', 'backbone.0.bias', 'expected torch.Tensor'],
            ),
            pytest.param(
                {**Model(5).state_dict(), 'b': 1}, ['1 unexpected: b', 'misshapen']
            ),
            pytest.param(
                {f'{i}\x1b[31m\n' + 'x' * 999: 1 for i in range(50)},
                ['50 unexpected: 0\\x1b[31m\\nxxx', '… and 42 more'],
            ),
        ],
    )
    def test_is_an_error(self, checkpoint, messages):
        checkpoint = dict(state_dict=checkpoint)
        with pytest.raises(
            ValueError, match='the weights of a.pth do not fit Model'
        ) as e:
            load_weights(Model(), checkpoint, 'a.pth')
        for message in messages:
            assert message in str(e.value)
        assert len(str(e.value)) < 2500

    @pytest.mark.parametrize(
        'checkpoint',
        [[], None, 3, torch.zeros(2), {1: torch.zeros(2)}, dict(state_dict=[1])],
    )
    def test_no_state_dict(self, checkpoint):
        with pytest.raises(ValueError, match='a.pth holds no state dict'):
            load_weights(Model(), checkpoint, 'a.pth')

    def test_what_fits(self, source, monkeypatch):
        said = []
        monkeypatch.setattr(matching, 'print_log', lambda text, **_: said.append(text))
        model = Model(head=nn.Linear(1, 1))
        load_weights(model, source.state_dict(), 'a.pth', allow_partial=True)
        assert torch.equal(model.backbone[0].weight, source.backbone[0].weight)
        (message,) = said
        assert '2 missing: head.weight, head.bias' in message


def test_sharded():
    assert not is_sharded(Model())
    assert not is_sharded(Augmented(module=Model()))
    assert is_sharded(Model(head=nn.DataParallel(nn.Linear(1, 1))))
