"""Training without labels: two views through one backbone before one backward pass."""

import copy

import mmpretrain.models  # noqa: F401  registers the models
import pytest
import torch

from mdeq_mm.deq import equilibrium_layers

from .classification_heads import MDEQ, ROWS, build

pytestmark = pytest.mark.versions

EXACT = dict(
    MDEQ,
    forward_solver=dict(type='BroydenSolver', max_evals=60, memory=60, tol=1e-6),
    gradient=dict(
        type='ImplicitGradient',
        solver=dict(type='BroydenSolver', max_evals=60, memory=60, tol=1e-6),
    ),
)
N_LAYERS_OF_THE_ORACLE = 60


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(4, 3, 32, 48, dtype=torch.float64, generator=generator)
        for _ in range(2)
    ]


@pytest.fixture
def make(calm):
    """Builds a self-supervised model of the matrix whose equilibria exist."""

    def build_calm(name):
        model = build(ROWS[name], EXACT, ROWS[name].maps)
        return calm(model).double().train()

    return build_calm


@pytest.fixture
def passes():
    """Notes the forward passes of every equilibrium layer of a model."""

    def watch(model):
        found = []
        for layer in equilibrium_layers(model):
            layer.register_pass_hook(lambda layer, one: found.append((layer, one)))
        return found

    return watch


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.backbone.named_parameters()
    }


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


class TestTwoViews:
    def test_each_is_at_its_own_equilibrium(self, make, views, passes):
        model = make('SimSiam')
        found = passes(model)
        loss = model.loss(views, None)['loss']
        assert len(found) == 2
        for _, one in found:
            z = one.state.detach()
            residual = (one.f(z) - z).norm(dim=1) / z.norm(dim=1)
            assert residual.max() < 1e-5
        first, second = (one.state.detach() for _, one in found)
        assert (first - second).norm() > 1e-3 * first.norm()
        loss.backward()
        assert all(one.adjoint.residual.max() < 1e-5 for _, one in found)

    @pytest.mark.slow
    def test_gradient_is_that_of_an_unrolled_oracle(self, make, views):
        model = make('SimSiam')
        oracle = copy.deepcopy(model)
        layer = oracle.backbone.equilibrium
        layer.mode = type(layer.unrolled)(N_LAYERS_OF_THE_ORACLE)
        for one in (model, oracle):
            one.loss(views, None)['loss'].backward()
        expected = flat(gradients(oracle))
        difference = flat(gradients(model)) - expected
        assert difference.norm() <= 1e-3 * expected.norm()

    def test_gradients_of_the_views_add_up(self, make, views):
        """As if each view had a backward pass of its own."""
        model = make('SimSiam')
        model.loss(views, None)['loss'].backward()
        together = gradients(model)
        model.zero_grad()
        for index in (0, 1):
            z = [model.neck(model.backbone(view))[0] for view in views]
            z[1 - index] = z[1 - index].detach()
            losses = [model.head.loss(z[0], z[1]), model.head.loss(z[1], z[0])]
            (0.5 * losses[index]).backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, together[name], rtol=1e-5, atol=1e-9)

    def test_batch_norm_sees_one_view_after_the_other(self, make, views):
        """Each view has statistics of its own, as with any backbone."""
        model = make('SimSiam')
        alone = copy.deepcopy(model)
        model.loss(views, None)
        for view in views:
            alone.backbone(view)
        norm, expected = model.backbone.stem[0].bn, alone.backbone.stem[0].bn
        assert norm.num_batches_tracked == 2
        torch.testing.assert_close(norm.running_mean, expected.running_mean)
        torch.testing.assert_close(norm.running_var, expected.running_var)


MOMENTUM = dict(BYOL='target_net', MoCo='encoder_k', MoCoV3='momentum_encoder')


@pytest.mark.parametrize('name', MOMENTUM)
class TestMomentumEncoder:
    """It is a deep copy of the backbone, which it follows at a distance."""

    def test_has_weights_and_equilibria_of_its_own(self, make, views, passes, name):
        model = make(name)
        target = getattr(model, MOMENTUM[name]).module[0]
        assert not set(map(id, target.parameters())) & set(
            map(id, model.backbone.parameters())
        )
        found = passes(model)
        model.loss(views, None)['loss'].backward()
        layers = [layer for layer, _ in found]
        assert layers.count(target.equilibrium) == layers.count(
            model.backbone.equilibrium
        )
        for layer, one in found:
            assert one.state.requires_grad == (layer is model.backbone.equilibrium)
        assert all(parameter.grad is None for parameter in target.parameters())
        assert all(p.grad is not None for p in model.backbone.parameters())

    def test_follows_the_backbone(self, make, views, name):
        model = make(name)
        target = getattr(model, MOMENTUM[name]).module[0]
        model.loss(views, None)  # the first one copies
        before = copy.deepcopy(target)
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.add_(1e-3)
        model.loss(views, None)
        pairs = zip(
            before.parameters(), target.parameters(), model.backbone.parameters()
        )
        for old, new, source in pairs:
            assert (new - old).norm() > 0
            assert (source - new).norm() < (source - old).norm()
