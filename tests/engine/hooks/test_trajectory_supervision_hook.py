from dataclasses import replace
from types import SimpleNamespace

import mmpretrain.models  # noqa: F401  registers the models
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

from mdeq_mm.engine import TrajectorySupervisionHook
from mdeq_mm.models import MDEQ


def losses_of(runner, hook):
    """Losses of one batch, and those expected of each iterate of its solve."""
    model = runner.model
    model.dropout.p = 0.0
    hook.before_train(runner)
    hook.before_train_iter(runner)
    expected = {}

    def compute(layer, forward_pass):
        for number, iterate in forward_pass.solution.iterates.items():
            finest = forward_pass.layout.unpack(forward_pass.f(iterate))[0]
            logits = model.fc(finest.mean(dim=(2, 3)))
            expected[number] = nn.functional.cross_entropy(logits, labels)

    model.backbone.equilibrium.register_pass_hook(compute)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    return model(images=images, labels=labels, mode='loss'), expected


def make_model():
    return dict(type='Classifier', dropout=0.0)


class TestTrajectorySupervisionHook:
    def test_loss(self, make_runner):
        runner = make_runner([], model=make_model())
        hook = TrajectorySupervisionHook(supervise=(2, 4), weight=(0.5, 2.0))
        losses, expected = losses_of(runner, hook)
        assert set(expected) == {2, 4}
        total = 0.5 * expected[2] + 2 * expected[4]
        torch.testing.assert_close(losses['loss_trajectory'], total)
        parameters = [p for p in runner.model.parameters() if p.requires_grad]
        actual = torch.autograd.grad(
            losses['loss_trajectory'], parameters, retain_graph=True
        )
        for a, b in zip(actual, torch.autograd.grad(total, parameters)):
            torch.testing.assert_close(a, b)
        assert isinstance(runner.model.backbone, MDEQ)

    def test_evenly_spread(self, make_runner):
        runner = make_runner([], model=make_model())
        _, expected = losses_of(runner, TrajectorySupervisionHook(n_states=2))
        assert set(expected) == {2, 4}  # of a budget of 6

    def test_a_number_given_twice(self, make_runner):
        runner = make_runner([], model=make_model())
        hook = TrajectorySupervisionHook(supervise=(2, 2), weight=(0.5, 1.0))
        losses, expected = losses_of(runner, hook)
        torch.testing.assert_close(losses['loss_trajectory'], 1.5 * expected[2])

    def test_solve_that_ends_early(self, make_runner):
        runner = make_runner([], model=make_model())
        layer = runner.model.backbone.equilibrium
        layer.mode = replace(layer.mode, solver=replace(layer.mode.solver, tol=1e9))
        losses, _ = losses_of(runner, TrajectorySupervisionHook(supervise=(2,)))
        assert set(losses) == {'loss'}

    def test_training(self, make_runner):
        runner = make_runner(
            [
                dict(type='ImplicitGradientHook', pretrain_iters=2),
                dict(type='TrajectorySupervisionHook', n_states=2),
                dict(type='JacobianRegularizationHook', weight=0.1),
            ],
            length=4,
        )
        runner.train()
        for name, times in (('loss', 4), ('loss_trajectory', 2), ('loss_jacobian', 2)):
            history, _ = runner.message_hub.get_scalar(f'train/{name}').data
            assert len(history) == times

    def test_nothing_for_a_frozen_layer(self, make_runner):
        model = dict(type='Classifier', dropout=0.0, frozen_stages=1)
        hook = dict(type='TrajectorySupervisionHook', n_states=2)
        runner = make_runner([hook], model=model, length=1)
        runner.train()
        assert 'train/loss_trajectory' not in runner.message_hub.log_scalars

    def test_other_backbone(self, make_runner):
        class Plain(BaseModel):
            def forward(self, images, labels, mode='tensor'):
                return dict()

        runner = make_runner([], model=Plain())
        message = 'an EquilibriumBackbone, such as MDEQ, got NoneType'
        with pytest.raises(ValueError, match=message):
            TrajectorySupervisionHook(n_states=1).before_train(runner)

    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            (dict(), 'exactly one of supervise and n_states'),
            (dict(supervise=(1,), n_states=1), 'exactly one'),
            (dict(n_states=0), 'n_states must .* got 0'),
            (dict(supervise=()), r'supervise must .* got \(\)'),
            (dict(supervise=(0, 2)), 'supervise must .* got 0'),
            (dict(n_states=2, weight=(1, 2, 3)), 'weight must be one number or 2'),
            (dict(n_states=1, weight=-1), 'weight must .* got -1'),
        ],
    )
    def test_wrong_arguments(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            TrajectorySupervisionHook(**arguments)


class Siamese(BaseModel):
    """Calls its backbone once per view, and returns the mean of each view's features.

    Args:
        modes (str): One letter per call: ``t`` trains, ``n`` is without gradients,
            ``e`` is in evaluation mode.
    """

    def __init__(self, modes='tt', **kwargs):
        super().__init__()
        self.backbone = MDEQ(
            arch=dict(channels=(8, 8), num_groups=2, expansion=1),
            forward_solver=dict(type='BroydenSolver', max_evals=6),
            **kwargs,
        )
        self.modes = modes
        self.seen = []

    def forward(self, *views, mode='loss'):
        seen, losses = [], {}
        for index, (view, kind) in enumerate(zip(views, self.modes)):
            self.backbone.train(kind != 'e')
            with torch.set_grad_enabled(kind != 'n'):
                (features,) = self.backbone(view)
            seen.append(features)
            losses[f'loss_{index}'] = (index + 1) * features.square().mean()
        self.backbone.train()
        self.seen.append(seen)
        return losses


def run(model, supervise=(3,)):
    """Runs a model once and returns its losses and its passes."""
    hook, passes = TrajectorySupervisionHook(supervise=supervise), []
    runner = SimpleNamespace(model=model.train())
    hook.before_train(runner)
    hook.before_train_iter(runner)
    model.backbone.equilibrium.register_pass_hook(
        lambda layer, forward_pass: passes.append(forward_pass)
    )
    views = [torch.rand(2, 3, 16, 16) for _ in model.modes]
    return model(*views), passes


def replayed(forward_pass, number):
    iterate = forward_pass.solution.iterates[number]
    return forward_pass.layout.unpack(forward_pass.f(iterate))


@pytest.mark.versions
class TestSeveralCalls:
    """Models that call their backbone several times, as SimSiam and BYOL do."""

    @pytest.mark.parametrize('index', [0, 1])
    def test_each_call_replays_its_own_iterates(self, index):
        model = Siamese(out_indices=(index,))
        losses, passes = run(model)
        assert len(passes) == 2
        _, again = model.seen
        expected = [replayed(forward_pass, 3)[index] for forward_pass in passes]
        for features, wanted in zip(again, expected):
            assert torch.equal(features, wanted)
        assert not torch.equal(again[0], again[1])
        total = sum((i + 1) * e.square().mean() for i, e in enumerate(expected))
        torch.testing.assert_close(losses['loss_trajectory'], total)
        losses['loss_trajectory'].backward()
        assert all(
            parameter.grad is not None for parameter in model.backbone.parameters()
        )

    @pytest.mark.parametrize('modes', ['tn', 'nt', 'te', 'tnt'])
    def test_calls_without_gradients_replay_their_features(self, modes):
        model = Siamese(modes, out_indices=(0,))
        losses, passes = run(model)
        first, again = model.seen
        for kind, forward_pass, before, after in zip(modes, passes, first, again):
            if kind == 't':
                assert torch.equal(after, replayed(forward_pass, 3)[0])
                assert after.requires_grad
            else:
                assert torch.equal(after, before)
                assert not after.requires_grad
        assert losses['loss_trajectory'] > 0

    def test_without_gradients_at_all(self):
        losses, _ = run(Siamese('nn', out_indices=(0,)))
        assert 'loss_trajectory' not in losses

    def test_evaluations_that_one_call_has_not_reached(self):
        model = Siamese(out_indices=(0,))
        backbone_forward, budgets = model.backbone.forward, iter((6, 3))

        def forward(view):
            layer = model.backbone.equilibrium
            solver = replace(layer.mode.solver, max_evals=next(budgets))
            with layer.using(solver=solver):
                return backbone_forward(view)

        model.backbone.forward = forward
        losses, passes = run(model, supervise=(2, 5))
        assert [set(p.solution.iterates) for p in passes] == [{2, 5}, {2}]
        total = sum(
            (i + 1) * replayed(p, 2)[0].square().mean() for i, p in enumerate(passes)
        )
        torch.testing.assert_close(losses['loss_trajectory'], total)

    def test_unrolled(self):
        model = Siamese(out_indices=(0,))
        model.backbone.equilibrium.mode = model.backbone.equilibrium.unrolled
        losses, _ = run(model)
        assert 'loss_trajectory' not in losses

    def test_backbone_is_restored_after_an_exception(self):
        class Fails(Siamese):
            def forward(self, *views, mode='loss'):
                losses = super().forward(*views, mode=mode)
                if len(self.seen) > 1:
                    raise ZeroDivisionError
                return losses

        model = Fails(out_indices=(0,))
        backbone, names = model.backbone, list(dict(model.named_modules()))
        with pytest.raises(ZeroDivisionError):
            run(model)
        assert model.backbone is backbone
        assert list(dict(model.named_modules())) == names

    def test_model_that_calls_more_often_the_second_time(self):
        class Undecided(Siamese):
            def forward(self, *views, mode='loss'):
                losses = super().forward(*views, mode=mode)
                if len(self.seen) > 1:
                    self.backbone(views[0])
                return losses

        with pytest.raises(RuntimeError, match='called its backbone more often'):
            run(Undecided(out_indices=(0,)))

    def test_simsiam(self):
        """The stock model, whose loss of the iterates is not that of one view alone."""
        init_default_scope('mmpretrain')
        neck = dict(
            type='NonLinearNeck', hid_channels=8, num_layers=2, with_last_bn=False
        )
        arch = dict(channels=(8, 16), num_groups=4)
        predictor = dict(neck, in_channels=8, out_channels=8, with_avg_pool=False)
        model = MODELS.build(
            dict(
                type='SimSiam',
                backbone=dict(type='MDEQ', arch=arch, out_indices=(1,)),
                neck=dict(neck, in_channels=16, out_channels=8, with_last_bias=True),
                head=dict(
                    type='LatentPredictHead',
                    loss=dict(type='CosineSimilarityLoss'),
                    predictor=dict(predictor, with_last_bias=True),
                ),
            )
        ).train()
        seen = []
        model.neck.register_forward_pre_hook(lambda neck, args: seen.append(args[0][0]))
        hook, runner = TrajectorySupervisionHook(supervise=[5]), SimpleNamespace()
        runner.model = model
        hook.before_train(runner)
        hook.before_train_iter(runner)
        views = [torch.rand(2, 3, 32, 32) for _ in range(2)]
        losses = model(inputs=views, data_samples=None, mode='loss')
        assert len(seen) == 4
        assert not torch.equal(seen[2], seen[3])
        for index in (0, 1):
            close = nn.functional.cosine_similarity(
                seen[index].flatten(), seen[index + 2].flatten(), dim=0
            )
            other = nn.functional.cosine_similarity(
                seen[1 - index].flatten(), seen[index + 2].flatten(), dim=0
            )
            assert close > other
        assert losses['loss_trajectory'].isfinite()
