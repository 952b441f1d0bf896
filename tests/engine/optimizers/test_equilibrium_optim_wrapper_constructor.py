"""Settings of parameters, by this constructor and by those of the toolboxes."""

import mmpretrain.engine  # noqa: F401
import mmseg.engine  # noqa: F401
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mdeq_mm.models import MDEQ

pytestmark = pytest.mark.versions

OURS = 'EquilibriumOptimWrapperConstructor'
MMPRETRAIN = 'mmpretrain.LearningRateDecayOptimWrapperConstructor'
MMSEG = 'mmseg.LearningRateDecayOptimizerConstructor'
LR, DECAY = 0.5, 0.25
SMALL = dict(type='MDEQ', arch=dict(channels=(8, 16), num_groups=4, expansion=1))
RESNET = dict(type='ResNet', depth=50)


def classifier(backbone, channels=16):
    cfg = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=channels),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


def segmentor(backbone, channels=16):
    cfg = dict(
        type='EncoderDecoder',
        backbone=backbone,
        decode_head=dict(
            type='FCNHead',
            in_channels=channels,
            channels=8,
            num_convs=1,
            num_classes=5,
        ),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg)


def settings(model, constructor=OURS, lr=LR, **paramwise_cfg):
    """Learning rate and weight decay of each parameter."""
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='SGD', lr=lr, weight_decay=DECAY),
            constructor=constructor,
            paramwise_cfg=paramwise_cfg,
        ),
    )
    groups = {
        id(parameter): (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    return {
        name: groups[id(parameter)]
        for name, parameter in model.named_parameters()
        if id(parameter) in groups
    }


def rates(found, prefix):
    """Learning rates of the parameters whose names begin so."""
    values = {lr for name, (lr, _) in found.items() if name.startswith(prefix)}
    assert values, prefix
    return values


class TestLayers:
    @pytest.mark.parametrize(
        ('model', 'constructor'),
        [(classifier, MMPRETRAIN), (classifier, OURS), (segmentor, OURS)],
    )
    def test_of_mdeq(self, model, constructor):
        found = settings(model(SMALL), constructor, layer_decay_rate=0.5)
        assert rates(found, 'backbone.stem') == {LR / 8}
        assert rates(found, 'backbone.injection') == {LR / 4}
        assert rates(found, 'backbone.equilibrium') == {LR / 2}
        assert rates(found, 'head' if model is classifier else 'decode_head') == {LR}

    def test_of_the_initial_guess(self):
        """It belongs to the equilibrium."""
        backbone = dict(SMALL, initial_guess=dict(type='ProjectedGuess'))
        found = settings(classifier(backbone), layer_decay_rate=0.5)
        assert rates(found, 'backbone.equilibrium.initial_guess') == {LR / 2}

    def test_as_the_stock_constructor(self):
        """The control: a backbone of the toolbox gets the same by both."""
        model = classifier(RESNET, 2048)
        stock = settings(model, MMPRETRAIN, layer_decay_rate=0.5)
        assert settings(model, OURS, layer_decay_rate=0.5) == stock
        assert len({lr for lr, _ in stock.values()}) > 5

    def test_stock_constructor_of_mmseg(self):
        """It knows three backbones by the names of their classes, and no others."""
        stock = dict(type='mmpretrain.ResNet', depth=18)
        for backbone, channels in ((SMALL, 16), (stock, 512)):
            with pytest.raises(NotImplementedError):
                settings(
                    segmentor(backbone, channels), MMSEG, num_layers=4, decay_rate=0.5
                )

    def test_depth(self):
        model = MDEQ(SMALL['arch'])
        assert model.get_layer_depth('stem.0.conv.weight') == (0, 4)
        assert model.get_layer_depth('b.injection.0.conv.weight', 'b.') == (1, 4)
        assert model.get_layer_depth('b.equilibrium.cell.x', 'b.') == (2, 4)
        # Only parts of the backbone have the prefix.
        assert model.get_layer_depth('stem.0.conv.weight', 'backbone.') == (3, 4)
        assert model.get_layer_depth('head.fc.weight', 'backbone.') == (3, 4)
        assert model.get_layer_depth('backbone.stemming', 'backbone.') == (3, 4)

    def test_beside_other_settings(self):
        found = settings(
            classifier(SMALL),
            layer_decay_rate=0.5,
            custom_keys={'backbone.stem': dict(lr_mult=0.25)},
        )
        assert rates(found, 'backbone.stem') == {LR / 32}
        assert rates(found, 'backbone.injection') == {LR / 4}

    def test_frozen_parameters(self):
        found = settings(classifier(dict(SMALL, frozen_stages=0)), layer_decay_rate=0.5)
        assert rates(found, 'backbone.equilibrium') == {LR / 2}

    @pytest.mark.parametrize('rate', [0, -1, 1.5, 'x', float('nan')])
    def test_wrong_rate(self, rate):
        with pytest.raises(ValueError, match=r'layer_decay_rate must be .* \(0, 1\]'):
            settings(classifier(SMALL), layer_decay_rate=rate)

    def test_backbone_without_depths(self):
        model = classifier(dict(type='LeNet5'), 84)
        with pytest.raises(ValueError, match='get_layer_depth, .* backbone LeNet5'):
            settings(model, layer_decay_rate=0.5)


class OlderWeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.utils.weight_norm(nn.Conv2d(2, 3, 1))
        self.norm = nn.BatchNorm2d(3)


class TestGains:
    def test_are_parameters_of_a_normalisation(self):
        found = settings(classifier(SMALL), norm_decay_mult=0.0)
        gains = {name for name in found if name.endswith('original0')}
        norms = {name for name in found if '.norm' in name or '.bn' in name}
        assert len(gains) == 6
        for name in gains | norms:
            assert found[name] == (LR, 0), name
        weights = [name for name in found if name.endswith('original1')]
        assert len(weights) == 6
        for name in weights:
            assert found[name] == (LR, DECAY), name

    @pytest.mark.parametrize(
        'constructor', ['DefaultOptimWrapperConstructor', MMPRETRAIN]
    )
    def test_by_stock_constructors(self, constructor):
        """They decay them, unless they are named."""
        keys = {'.original0': dict(decay_mult=0.0)}
        for expected, named in ((DECAY, {}), (0, dict(custom_keys=keys))):
            found = settings(
                classifier(SMALL), constructor, norm_decay_mult=0.0, **named
            )
            gains = [found[name] for name in found if name.endswith('original0')]
            assert {decay for _, decay in gains} == {expected}

    def test_nothing_else_changes(self):
        model = classifier(SMALL)
        stock = settings(model, 'DefaultOptimWrapperConstructor', norm_decay_mult=0.0)
        changed = {
            name
            for name, setting in settings(model, norm_decay_mult=0.0).items()
            if setting != stock[name]
        }
        assert changed == {name for name in stock if name.endswith('original0')}

    @pytest.mark.parametrize('paramwise_cfg', [{}, dict(bias_decay_mult=0.0)])
    def test_without_the_setting(self, paramwise_cfg):
        model = classifier(SMALL)
        stock = settings(model, 'DefaultOptimWrapperConstructor', **paramwise_cfg)
        assert settings(model, **paramwise_cfg) == stock

    def test_custom_keys_win(self):
        keys = {'branches.0': dict(decay_mult=0.5)}
        found = settings(classifier(SMALL), norm_decay_mult=0.0, custom_keys=keys)
        for name in found:
            if name.endswith('original0'):
                expected = DECAY / 2 if 'branches.0' in name else 0
                assert found[name] == (LR, expected), name

    @pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
    def test_of_the_older_way(self):
        found = settings(OlderWeightNorm(), norm_decay_mult=0.0)
        decays = {name: decay for name, (_, decay) in found.items()}
        assert decays == {
            'conv.weight_g': 0,
            'conv.weight_v': DECAY,
            'conv.bias': DECAY,
            'norm.weight': 0,
            'norm.bias': 0,
        }

    def test_folded_weights(self):
        found = settings(classifier(dict(SMALL, deploy=True)), norm_decay_mult=0.0)
        conv = 'backbone.equilibrium.cell.branches.0.0.conv1.weight'
        assert found[conv] == (LR, DECAY)

    def test_frozen(self):
        found = settings(classifier(dict(SMALL, frozen_stages=1)), norm_decay_mult=0.0)
        assert found['head.fc.weight'] == (LR, DECAY)
