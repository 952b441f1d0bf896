import gc

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.engine import ImplicitGradientHook

EXTRAS = [
    dict(type='JacobianRegularizationHook', weight=0.1),
    dict(type='InitialGuessLossHook'),
    dict(type='TrajectorySupervisionHook', supervise=(2,)),
]
MODEL = dict(type='Classifier', initial_guess=dict(type='ProjectedGuess'))


def loss_names(runner):
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    model = runner.model.train()
    with model.backbone.equilibrium.initial_guess.supervision():
        return set(model(images=images, labels=labels, mode='loss'))


class TestImplicitGradientHook:
    def test_parts_get_every_stage_that_they_have(self):
        """A stage that a part overrides is passed on to it."""
        hook = ImplicitGradientHook()
        for part in hook.parts:
            for stage in Hook.stages:
                if getattr(type(part), stage) is not getattr(Hook, stage):
                    passed_on = getattr(type(hook), stage)
                    assert passed_on is not getattr(Hook, stage), stage

    def test_one_entry_does_it_all(self, make_runner):
        """Schedule, statistics and metrics, in a run of stock mmengine."""
        runner = make_runner(
            [dict(type='ImplicitGradientHook', pretrain_iters=2)],
            length=3,
            val_evaluator=dict(type='SolverStatistics'),
        )
        runner.train()
        scalars = runner.message_hub.log_scalars
        assert len(scalars['train/forward_evals'].data[0]) == 1
        assert len(scalars['val/solver/evals'].data[0]) == 1

    def test_model_without_equilibrium(self, make_runner):
        class Plain(BaseModel):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(1, 1)

            def forward(self, images, labels, mode='tensor'):
                return dict(loss=self.fc(images.mean().view(1, 1)).sum())

        runner = make_runner([dict(type='ImplicitGradientHook')], model=Plain())
        with pytest.raises(ValueError, match='EquilibriumLayer.*Plain has none'):
            runner.train()

    @pytest.mark.parametrize(
        ('arguments', 'match'),
        [
            (dict(pretrain_iters=-1), 'pretrain_iters must .* got -1'),
            (dict(pretrain_iters=5, pretrain_epochs=2), 'at most one .* got 5 and 2'),
            (dict(warn_residual=0), 'warn_residual must .* got 0'),
            (dict(phases=[dict(begin=-1)]), 'begin must .* got -1'),
        ],
    )
    def test_wrong_arguments(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            ImplicitGradientHook(**arguments)


@pytest.mark.versions
class TestNothingOutlivesTheRun:
    """What the hooks register is taken away, whatever ends the run."""

    def make(self, make_runner, hooks=EXTRAS, **kwargs):
        hooks = [dict(type='ImplicitGradientHook'), *hooks]
        runner = make_runner(hooks, model=kwargs.pop('model', MODEL), **kwargs)
        runner._val_loop = None
        return runner

    def test_after_training(self, make_runner, n_observers):
        runner = self.make(make_runner, length=1)
        runner.train()
        assert n_observers(runner.model) == 0
        assert loss_names(runner) == {'loss'}
        losses = {'loss_jacobian', 'loss_initial_guess', 'loss_trajectory'}
        assert losses <= {
            name.removeprefix('train/') for name in runner.message_hub.log_scalars
        }

    def test_a_second_training(self, make_runner, n_observers):
        runner = self.make(make_runner, length=1)
        runner.train()
        counts = []
        runner.model.register_forward_pre_hook(
            lambda *args: counts.append(n_observers(runner.model))
        )
        runner.train_loop._iter = 0
        runner.train()
        # One pre-hook of the test; then per loss a hook before the model, one behind it
        # and one on the layer; and the statistics.
        assert counts == [1 + 3 * 3 + 1]
        assert n_observers(runner.model) == 1

    def test_another_run_of_the_same_model(self, make_runner):
        runner = self.make(make_runner, length=1)
        runner.train()
        model = runner.model
        model.backbone.equilibrium.initial_guess.requires_grad_(False)
        other = self.make(make_runner, hooks=[], model=model, length=1)
        other.train()
        names = set(other.message_hub.log_scalars)
        assert 'train/forward_evals' in names
        assert not {name for name in names if 'loss_' in name}

    def test_after_an_exception(self, make_runner, n_observers):
        runner = self.make(make_runner, length=1)
        model = runner.model

        def fail(module, args, output):
            raise ZeroDivisionError

        handle = model.fc.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            runner.train()
        handle.remove()
        assert n_observers(model) > 0
        # The next run of the runner ends it; so does the end of the runner.
        runner.train()
        assert n_observers(model) == 0
        handle = model.fc.register_forward_hook(fail)
        runner.train_loop._iter = 0
        with pytest.raises(ZeroDivisionError):
            runner.train()
        handle.remove()
        del runner
        gc.collect()
        assert n_observers(model) == 0
