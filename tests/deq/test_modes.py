import copy
import io
from collections import OrderedDict
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from mmengine.runner.checkpoint import (
    get_state_dict,
    load_checkpoint,
    load_state_dict,
    save_checkpoint,
    weights_to_cpu,
)
from torch import nn
from torch.autograd import gradcheck

from mdeq_mm.deq import (
    Equilibrium,
    EquilibriumLayer,
    GuardedStart,
    ImplicitGradient,
    Mode,
    PhantomGradient,
    PicardSolver,
    Unrolled,
)

from .example_guess import InjectionGuess
from .toys import LinearCell

INJECTIONS = (torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2))
WEIGHTS = (0.5, -0.5)


@pytest.fixture
def layer():
    solver = PicardSolver(max_evals=40, tol=1e-6)
    return EquilibriumLayer(
        LinearCell(), solver, ImplicitGradient(solver), num_layers=3
    )


class TestUnrolled:
    @pytest.mark.parametrize('case', ['train', 'eval', 'no_grad'])
    def test_value(self, layer, case):
        layer.mode = layer.unrolled
        layer.train(case == 'train')
        with torch.set_grad_enabled(case != 'no_grad'):
            features, forward_pass = layer(INJECTIONS)
        assert forward_pass.solution is None
        assert forward_pass.mode == Unrolled(3)
        assert layer.cell.n_calls == 3
        for feature, x, w in zip(features, INJECTIONS, WEIGHTS):
            torch.testing.assert_close(feature, x * (1 + w + w * w))
        assert features[0].requires_grad == (case != 'no_grad')

    def test_another_number_of_layers(self, layer):
        with layer.using(mode=Unrolled(4)):
            features, _ = layer(INJECTIONS)
        assert layer.cell.n_calls == 4
        expected = INJECTIONS[0] * (1 + 0.5 + 0.25 + 0.125)
        torch.testing.assert_close(features[0], expected)

    def test_gradcheck(self, layer):
        layer.double()
        inputs = [x[:1, :1, :2, :1].double().requires_grad_() for x in INJECTIONS]

        def unrolled(*injections):
            with layer.using(mode=Unrolled(4)):
                return layer(injections).features

        assert gradcheck(unrolled, inputs)

    def test_gradient_of_the_weights(self, layer):
        with layer.using(mode=layer.unrolled):
            features, forward_pass = layer(INJECTIONS)
        sum(feature.sum() for feature in features).backward()
        expected = [x.sum() * (1 + 2 * w) for x, w in zip(INJECTIONS, WEIGHTS)]
        torch.testing.assert_close(layer.cell.weight.grad, torch.stack(expected))
        assert forward_pass.adjoint is None

    def test_differentiable_twice(self, layer):
        with layer.using(mode=layer.unrolled):
            total = sum(z.sum() for z in layer(INJECTIONS).features)
        (first,) = torch.autograd.grad(total, layer.cell.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), layer.cell.weight)
        expected = torch.stack([2 * x.sum() for x in INJECTIONS])
        torch.testing.assert_close(second, expected)

    @pytest.mark.parametrize('wrong', [0, 1.5, True, None])
    def test_wrong_num_layers(self, wrong):
        message = f'num_layers must be an integer of at least 1, got {wrong}'
        with pytest.raises(ValueError, match=message):
            Unrolled(wrong)


class TestReturnedEvaluation:
    @pytest.fixture
    def layers(self):
        """Two layers that differ in what their solver returns."""
        solver = PicardSolver(max_evals=5, tol=0)
        return [
            EquilibriumLayer(
                LinearCell(), replace(solver, returns=name), ImplicitGradient(solver)
            )
            for name in ('iterate', 'evaluation')
        ]

    def test_inference_returns_what_the_head_was_trained_on(self, layers):
        for layer in layers:
            trained_on = layer(INJECTIONS).features
            n_calls = layer.cell.n_calls
            with torch.no_grad():
                layer.eval()
                inferred = layer(INJECTIONS).features
            assert layer.cell.n_calls - n_calls == 5
            same = [torch.equal(a, b) for a, b in zip(trained_on, inferred)]
            evaluation = layer.configured.solver.returns == 'evaluation'
            assert same == [evaluation] * 2

    def test_training_is_the_same(self, layers):
        results = []
        for layer in layers:
            features, forward_pass = layer(INJECTIONS)
            sum(feature.square().sum() for feature in features).backward()
            results.append((*features, layer.cell.weight.grad))
            assert layer.cell.n_calls == 6
            assert forward_pass.solution.state is not forward_pass.state
        for a, b in zip(*results):
            assert torch.equal(a, b)

    def test_another_mode_keeps_its_own_way(self):
        """A guarded start looks first, in training, too."""
        solver = PicardSolver(max_evals=5, tol=0, returns='evaluation')
        guarded = GuardedStart(solver, ImplicitGradient(solver), limit=1e-9)
        layer = EquilibriumLayer(LinearCell(), solver, ImplicitGradient(solver))
        with layer.using(mode=guarded, initial_guess=InjectionGuess()):
            solution = layer(INJECTIONS).forward_pass.solution
        assert (solution.n_evals == 6).all()


class TestMode:
    def test_setting_it(self, layer):
        assert layer.mode is layer.configured
        layer.mode = layer.unrolled
        assert layer.mode is layer.unrolled
        layer.mode = layer.configured
        assert layer(INJECTIONS).forward_pass.solution is not None

    @pytest.mark.parametrize('wrong', ['unrolled', None, 3, Unrolled])
    def test_setting_it_to_something_else(self, layer, wrong):
        with pytest.raises(TypeError, match='mode must be a Mode, got'):
            layer.mode = wrong
        assert layer.mode is layer.configured

    def test_settings_are_fixed(self, layer):
        with pytest.raises(FrozenInstanceError):
            layer.configured.solver = PicardSolver()
        with pytest.raises(FrozenInstanceError):
            layer.unrolled.num_layers = 7
        longer = replace(layer.configured, solver=PicardSolver(99))
        assert longer == Equilibrium(PicardSolver(99), layer.configured.gradient)

    def test_a_mode_of_ones_own(self, layer):
        class Halved(Mode):
            def run(self, forward_pass, differentiate, keep=(), restrict=None):
                return forward_pass.f(forward_pass.guess) / 2

        layer.mode = Halved()
        features, forward_pass = layer(INJECTIONS)
        assert isinstance(forward_pass.mode, Halved)
        torch.testing.assert_close(features[0], INJECTIONS[0] / 2)


def through_torch_save(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.fixture
def models():
    """Makes models of two layers each, as a detector in a wrapper may be."""

    def make(*unrolled):
        layers = []
        for value in unrolled:
            solver = PicardSolver(max_evals=40, tol=1e-6)
            layer = EquilibriumLayer(
                LinearCell(), solver, PhantomGradient(), num_layers=2
            )
            if value:
                layer.mode = layer.unrolled
            layers.append(nn.Sequential(OrderedDict(equilibrium=layer)))
        return nn.Sequential(*layers)

    return make


def is_unrolled(model):
    return [isinstance(part.equilibrium.mode, Unrolled) for part in model]


@pytest.mark.versions
class TestModeInTheStateDict:
    @pytest.mark.parametrize(
        'collect',
        [nn.Module.state_dict, get_state_dict],
        ids=['torch', 'mmengine'],
    )
    @pytest.mark.parametrize(
        'carry',
        [lambda state: state, through_torch_save, weights_to_cpu, copy.copy],
        ids=['itself', 'file', 'cpu', 'copy'],
    )
    @pytest.mark.parametrize(
        'load',
        [nn.Module.load_state_dict, load_state_dict],
        ids=['torch', 'mmengine'],
    )
    def test_it_travels(self, models, collect, carry, load):
        state = carry(collect(models(True, False)))
        assert list(state) == ['0.equilibrium.cell.weight', '1.equilibrium.cell.weight']
        for before in ((False, False), (True, True), (False, True)):
            model = models(*before)
            load(model, state)
            assert is_unrolled(model) == [True, False]

    def test_checkpoint_of_mmengine(self, models, tmp_path):
        path = str(tmp_path / 'iter_1.pth')
        checkpoint = dict(state_dict=get_state_dict(models(True, False)), meta={})
        save_checkpoint(checkpoint, path)
        model = models(False, True)
        load_checkpoint(model, path, map_location='cpu')
        assert is_unrolled(model) == [True, False]

    def test_layer_alone(self, layer):
        layer.mode = layer.unrolled
        state = layer.state_dict()
        layer.mode = layer.configured
        layer.load_state_dict(state)
        assert layer.mode is layer.unrolled

    def test_equilibrium_checkpoint_into_an_unrolled_layer(self, layer):
        state = layer.state_dict()
        layer.mode = layer.unrolled
        layer.load_state_dict(state)
        assert layer.mode is layer.configured

    @pytest.mark.parametrize('unrolled', [False, True])
    def test_without_metadata_it_stays(self, models, unrolled):
        """As in checkpoints that are older than the metadata."""
        state = dict(models(not unrolled, not unrolled).state_dict())
        model = models(unrolled, unrolled)
        model.load_state_dict(state)
        assert is_unrolled(model) == [unrolled, unrolled]

    def test_metadata_of_an_older_version(self, models):
        state = models(False, False).state_dict()
        for metadata in state._metadata.values():
            metadata.pop('unrolled', None)
        model = models(True, False)
        model.load_state_dict(state)
        assert is_unrolled(model) == [True, False]

    def test_an_override_is_not_saved(self, layer):
        with layer.using(mode=layer.unrolled):
            state = layer.state_dict()
        layer.load_state_dict(state)
        assert layer.mode is layer.configured

    def test_loading_within_an_override(self, layer):
        state = layer.state_dict()
        layer.mode = layer.unrolled
        with layer.using(mode=Unrolled(7)):
            layer.load_state_dict(state)
            assert layer.mode == Unrolled(7)
        assert layer.mode is layer.configured

    def test_a_mode_that_was_set_to_another_equilibrium_stays(self, layer):
        """The metadata says which kind of mode, and no settings."""
        state = layer.state_dict()
        mode = layer.mode = replace(layer.configured, solver=PicardSolver(7))
        layer.load_state_dict(state)
        assert layer.mode is mode

    def test_copies_keep_the_mode(self, layer):
        layer.mode = layer.unrolled
        twin = copy.deepcopy(layer)
        assert twin.mode is twin.unrolled
        layer.mode = layer.configured
        assert twin.mode is twin.unrolled
