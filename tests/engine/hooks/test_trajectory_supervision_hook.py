import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.engine import TrajectorySupervisionHook

HOOK = dict(type='ImplicitGradientHook')


def losses_of(runner, hook):
    """Losses of one batch, and those expected of each iterate of its solve."""
    model = runner.model
    model.dropout.p = 0.0
    hook.before_train(runner)
    hook.before_train_iter(runner)
    expected = {}

    def compute(layer, solve):
        for number, iterate in solve.solution.iterates.items():
            finest = solve.layout.unpack(solve.f(iterate))[0]
            logits = model.fc(finest.mean(dim=(2, 3)))
            expected[number] = nn.functional.cross_entropy(logits, labels)

    model.backbone.equilibrium.register_solve_hook(compute)
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

    def test_evenly_spread(self, make_runner):
        runner = make_runner([], model=make_model())
        _, expected = losses_of(runner, TrajectorySupervisionHook(n_states=2))
        assert set(expected) == {2, 4}  # of a budget of 6

    def test_solve_that_ends_early(self, make_runner):
        runner = make_runner([], model=make_model())
        runner.model.backbone.equilibrium.solver.tol = 1e9
        losses, _ = losses_of(runner, TrajectorySupervisionHook(supervise=(2,)))
        assert set(losses) == {'loss'}

    def test_training(self, make_runner):
        runner = make_runner(
            [
                dict(type='ImplicitGradientHook', pretrain_iters=2),
                dict(type='TrajectorySupervisionHook', n_states=2),
                dict(type='JacobianRegularizationHook', weight=0.1),
            ]
        )
        runner.train()
        for name, times in (('loss', 6), ('loss_trajectory', 4), ('loss_jacobian', 4)):
            history, _ = runner.message_hub.get_scalar(f'train/{name}').data
            assert len(history) == times

    def test_other_backbone(self, make_runner):
        class Plain(BaseModel):
            def forward(self, images, labels, mode='tensor'):
                return dict()

        runner = make_runner([], model=Plain())
        with pytest.raises(ValueError, match='whose backbone is an MDEQ, got NoneType'):
            TrajectorySupervisionHook(n_states=1).before_train(runner)

    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            (dict(), 'exactly one of supervise and n_states'),
            (dict(supervise=(1,), n_states=1), 'exactly one'),
            (dict(n_states=0), 'n_states must .* got 0'),
            (dict(supervise=()), r'supervise must .* got \(\)'),
            (dict(supervise=(0, 2)), r'supervise must .* got \(0, 2\)'),
            (dict(n_states=2, weight=(1, 2, 3)), 'weight must be one number or 2'),
            (dict(n_states=1, weight=-1), 'weight must .* got -1'),
        ],
    )
    def test_wrong_arguments(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            TrajectorySupervisionHook(**arguments)
