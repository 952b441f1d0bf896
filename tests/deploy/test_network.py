"""A whole model as one function from images to logits."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch.nn.utils.parametrize import is_parametrized

from mdeq_mm.apis import single_layer
from mdeq_mm.deploy import DeployedNetwork, FixedEvaluations, fixed_mode
from mdeq_mm.deq import AndersonSolver, ImplicitGradient, PreviousGuess

FEW = dict(type='AndersonSolver', max_evals=3)


def images_of(batch_size=2, height=20, width=26):
    torch.manual_seed(1)
    return torch.randint(0, 256, (batch_size, 3, height, width)).float()


@pytest.mark.parametrize('kind', ['segmentor', 'classifier'])
class TestBothKinds:
    def test_computes_what_the_model_predicts(self, make_model, kind):
        """Normalisation and order of the channels included."""
        model = make_model(kind, forward_solver=FEW)
        mode = fixed_mode(single_layer(model))
        images = images_of()
        network = DeployedNetwork(model, mode)
        single_layer(model).mode = mode
        samples = [BaseDataElement() for _ in images]
        data = dict(inputs=list(images), data_samples=samples)
        inputs = model.data_preprocessor(data)['inputs']
        with torch.no_grad():
            expected = (
                model.encode_decode(inputs, [dict(img_shape=(20, 26))])
                if kind == 'segmentor'
                else model(inputs)
            )
        assert network.kind == kind
        shape = (2, 3, 20, 26) if kind == 'segmentor' else (2, 5)
        assert network(images).shape == shape
        torch.testing.assert_close(network(images), expected)

    def test_any_size_and_batch(self, make_model, kind):
        network = DeployedNetwork(make_model(kind), FixedEvaluations(AndersonSolver(3)))
        for shape in ((3, 33, 47), (1, 9, 12)):
            images = network.example(*shape)
            single = network(images[:1])
            torch.testing.assert_close(network(images)[:1], single)

    @pytest.mark.filterwarnings('ignore')
    def test_traced_network_is_right_for_other_images(self, make_model, kind):
        network = DeployedNetwork(make_model(kind), FixedEvaluations(AndersonSolver(4)))
        traced = torch.jit.trace(network, images_of(), check_trace=False)
        others = network.example(2, 20, 26)
        torch.testing.assert_close(traced(others), network(others))

    def test_model_is_not_touched(self, make_model, kind):
        model = make_model(kind).train()
        layer, state = single_layer(model), model.state_dict()
        before, mode = {name: t.clone() for name, t in state.items()}, layer.mode
        network = DeployedNetwork(model, fixed_mode(layer))
        network(images_of())
        assert model.training
        assert layer.mode is mode
        assert all(torch.equal(t, before[name]) for name, t in state.items())
        assert any(is_parametrized(module) for module in layer.modules())
        assert not any(is_parametrized(module) for module in network.modules())
        assert not any(p.requires_grad for p in network.parameters())


def test_frame_before_is_not_known(make_model):
    model = make_model('segmentor', initial_guess=dict(type='PreviousGuess'))
    network = DeployedNetwork(model, fixed_mode(single_layer(model), evals=2))
    assert not isinstance(network.layer.initial_guess, PreviousGuess)
    first = network(images_of())
    torch.testing.assert_close(network(images_of()), first)


def test_examples_have_the_range_of_images(make_model):
    model = make_model('classifier')
    network = DeployedNetwork(model, fixed_mode(single_layer(model)))
    images = network.example(2, 8, 9)
    assert images.shape == (2, 3, 8, 9)
    assert torch.equal(images, network.example(2, 8, 9))
    assert 200 < images.max() < 255
    network.mean = None
    assert network.example(2, 8, 9).max() < 1


class OtherModel(BaseModel):
    def forward(self, inputs):
        return inputs


def test_other_models_are_refused():
    with pytest.raises(TypeError, match='segmentor .* or a classifier .*got OtherMod'):
        DeployedNetwork(OtherModel(), FixedEvaluations(AndersonSolver()))


def test_head_with_several_results_is_refused(make_model):
    model = make_model('classifier')
    model.head.forward = tuple
    network = DeployedNetwork(model, FixedEvaluations(AndersonSolver(1)))
    with pytest.raises(TypeError, match='one tensor, LinearClsHead returns tuple'):
        network(images_of())


def test_model_without_an_equilibrium_is_refused(make_model):
    model = make_model('classifier')
    del model.backbone.equilibrium
    with pytest.raises(ValueError, match='equilibrium layer is needed'):
        DeployedNetwork(model, FixedEvaluations(AndersonSolver()))


def test_training_is_not_changed(make_model):
    """A copy of the layer has the mode; the model still trains by its gradient."""
    model = make_model('classifier')
    DeployedNetwork(model, fixed_mode(single_layer(model)))
    assert isinstance(single_layer(model).mode.gradient, ImplicitGradient)
