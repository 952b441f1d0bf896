import gc
import runpy
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.__main__ import find_tool
from mdeq_mm.engine import ImplicitGradientHook

HOOK = dict(type='ImplicitGradientHook')
EXTRAS = [
    dict(type='JacobianRegularizationHook', weight=0.1),
    dict(type='InitialGuessLossHook'),
    dict(type='TrajectorySupervisionHook', supervise=(2,)),
]
MODEL = dict(type='Classifier', initial_guess=dict(type='ProjectedGuess'))


# What vis_scheduler.py reads of a config. It takes custom_hooks over.
SCHEDULE = f"""
default_scope = 'mmpretrain'
default_hooks = dict(param_scheduler=dict(type='ParamSchedulerHook'))
custom_hooks = [{HOOK}]
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1))
param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[2], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=2)
train_dataloader = dict(batch_size=2)
"""


class Plain(BaseModel):
    """A model without equilibrium."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)

    def forward(self, images, labels, mode='tensor'):
        loss = self.fc(images.mean().view(1, 1)).sum()
        return dict(loss=loss) if mode == 'loss' else [loss]


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
        assert len(scalars['train/forward_residual'].data[0]) == 1
        assert len(scalars['val/solver/evals'].data[0]) == 1

    def test_model_without_equilibrium(self, make_runner):
        cfg = Config(dict(model=dict(type='Plain')))
        runner = make_runner([HOOK], model=Plain(), cfg=cfg)
        with pytest.raises(ValueError, match='EquilibriumLayer.*Plain has none'):
            runner.train()

    def test_model_of_a_tool(self, make_runner, caplog):
        """As vis_scheduler.py of mmpretrain runs the hooks of a config."""
        runner = make_runner([HOOK], model=Plain())
        runner.logger.addHandler(caplog.handler)
        runner.train()
        assert runner.iter == 6
        (said,) = [r.getMessage() for r in caplog.records if 'Plain' in r.getMessage()]
        assert 'has none. The hook does nothing' in said

    def test_stock_tool_that_draws_schedules(self, tmp_path, monkeypatch):
        tool = str(find_tool('mmpretrain::visualization/vis_scheduler.py'))
        (tmp_path / 'config.py').write_text(SCHEDULE)
        arguments = [tool, 'config.py', '--dataset-size', '8', '--not-show']
        monkeypatch.setattr(sys, 'argv', [*arguments, '--save-path', 'lr.png'])
        monkeypatch.setenv('MPLBACKEND', 'agg')
        runpy.run_path(tool, run_name='__main__')
        plt.close('all')
        assert (tmp_path / 'lr.png').stat().st_size > 1000

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
        assert 'train/forward_residual' in names
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
