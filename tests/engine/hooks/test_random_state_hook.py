import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop

from mdeq_mm.engine.hooks import random_state_hook
from mdeq_mm.engine.hooks.random_state_hook import _get_states, _set_states

pytestmark = pytest.mark.versions  # generators are numpy's and torch's
HOOKS = [dict(type='ImplicitGradientHook'), dict(type='RandomStateHook')]


@LOOPS.register_module()
class SkippingLoop(IterBasedTrainLoop):
    """Lets its iterator skip on resuming, or skips nothing, as OneDL's loop does."""

    fast_forward_on_resume = False

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self.iter > 0 and not self.fast_forward_on_resume:
            self.dataloader_iterator.skip_iter(self.iter)
        while self.iter < self.max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            if self.iter % self.val_interval == 0:
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


def parameters(runner):
    return {name: p.detach().clone() for name, p in runner.model.named_parameters()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class TestRandomStateHook:
    @pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        ('by_epoch', 'length', 'stop'), [(False, 6, 3), (True, 3, 1)]
    )
    def test_resumed_run_is_the_uninterrupted_one(
        self, make_runner, tmp_path, by_epoch, length, stop, workers
    ):
        """With dropout, random augmentation and a validation in between."""
        runner = make_runner(HOOKS, by_epoch=by_epoch, length=length, workers=workers)
        runner.train()
        expected = parameters(runner)

        unit = 'epoch' if by_epoch else 'iter'
        checkpoint = tmp_path / 'work_dir' / f'{unit}_{stop}.pth'
        resumed = make_runner(
            HOOKS,
            by_epoch=by_epoch,
            length=length,
            workers=workers,
            resume=True,
            load_from=str(checkpoint),
        )
        # A process that is started anew has drawn other numbers by now.
        torch.rand(10)
        np.random.rand(10)
        resumed.train()
        assert_equal(expected, parameters(resumed))

    @pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_loop_that_lets_its_iterator_skip(self, make_runner, tmp_path, workers):
        runner = make_runner(HOOKS, workers=workers)
        runner._train_loop['type'] = 'SkippingLoop'
        runner.train()
        path = str(tmp_path / 'work_dir/iter_3.pth')
        resumed = make_runner(HOOKS, resume=True, load_from=path, workers=workers)
        resumed._train_loop['type'] = 'SkippingLoop'
        resumed.train()
        assert_equal(parameters(runner), parameters(resumed))

    def test_loop_that_skips_nothing(self, make_runner, tmp_path, monkeypatch):
        """The states belong before the first batch, not before a later one."""
        make_runner(HOOKS, length=3).train()
        path = str(tmp_path / 'work_dir/iter_3.pth')
        resumed = make_runner(HOOKS, resume=True, load_from=path, length=4)
        resumed._train_loop['type'] = 'SkippingLoop'
        monkeypatch.setattr(SkippingLoop, 'fast_forward_on_resume', True)
        restored_at = []
        monkeypatch.setattr(
            random_state_hook,
            '_set_states',
            lambda states: restored_at.append(resumed.iter),
        )
        resumed.train()
        assert restored_at[0] == 3
        assert len(restored_at) == 1

    def test_without_the_hook_it_is_another_run(self, make_runner, tmp_path):
        """What makes the test above worth something."""
        runner = make_runner(HOOKS[:1])
        runner.train()
        resumed = make_runner(
            HOOKS[:1], resume=True, load_from=str(tmp_path / 'work_dir' / 'iter_3.pth')
        )
        resumed.train()
        with pytest.raises(AssertionError):
            assert_equal(parameters(runner), parameters(resumed))

    def test_validation_does_not_change_training(self, make_runner):
        runner = make_runner(HOOKS)
        runner.train()
        without = make_runner(HOOKS)
        without._val_loop = None
        without.train()
        assert_equal(parameters(runner), parameters(without))

    def test_best_checkpoint_holds_the_states_of_training(self, make_runner, tmp_path):
        """It is saved after a validation, which has drawn random numbers of its own."""
        runner = make_runner(HOOKS, length=3)
        saver = dict(interval=3, by_epoch=False, save_best='mean', rule='less')
        runner.register_hook(dict(type='CheckpointHook', **saver))
        states = []

        class Note(Hook):
            priority = 'VERY_LOW'

            def after_train_iter(self, runner, *args, **kwargs):
                states.append(_get_states())

        runner.register_hook(Note())
        runner.train()
        for name in ('iter_3.pth', 'best_mean_iter_3.pth'):
            path = tmp_path / 'work_dir' / name
            (saved,) = torch.load(path, weights_only=False)['random_states']
            assert torch.equal(saved['torch'], states[-1]['torch']), name
            assert saved['python'] == states[-1]['python']
            assert saved['numpy'][1] == states[-1]['numpy'][1]

    def test_resuming_from_the_best_checkpoint(self, make_runner, tmp_path):
        saver = dict(interval=9, by_epoch=False, save_best='mean', rule='less')
        hooks = [*HOOKS, dict(type='CheckpointHook', **saver)]
        path = str(tmp_path / 'work_dir' / 'best_mean_iter_3.pth')
        # Without momentum the checkpoint of the best model lacks nothing.
        make_runner(hooks, length=3).train()
        resumed = make_runner(HOOKS, resume=True, load_from=path)
        resumed.train()
        whole = make_runner(HOOKS)
        whole.train()
        assert_equal(parameters(whole), parameters(resumed))

    def test_other_number_of_processes(self, make_runner, tmp_path, caplog):
        make_runner(HOOKS, length=3).train()
        path = tmp_path / 'work_dir' / 'iter_3.pth'
        checkpoint = torch.load(path, weights_only=False)
        checkpoint['random_states'] *= 2
        torch.save(checkpoint, path)
        runner = make_runner(HOOKS, resume=True, load_from=str(path))
        runner.logger.addHandler(caplog.handler)
        runner.train()
        assert 'random states of 2 processes; this run has 1' in caplog.text

    def test_loading_weights_restores_nothing(self, make_runner, tmp_path, monkeypatch):
        make_runner(HOOKS, length=3).train()
        calls = []
        monkeypatch.setattr(random_state_hook, '_set_states', calls.append)
        path = str(tmp_path / 'work_dir' / 'iter_3.pth')
        make_runner(HOOKS, length=2, load_from=path).train()
        assert len(calls) == 1  # after the validation at the end
        make_runner(HOOKS, length=5, load_from=path, resume=True).train()
        assert len(calls) == 3


class TestStates:
    def test_round_trip(self, tmp_path):
        def draw():
            return random.random(), np.random.randn(), torch.randn(3).tolist()

        np.random.randn()  # leaves a second Gaussian in the cache
        torch.save(_get_states(), tmp_path / 'states.pth')
        expected = draw()
        draw()
        _set_states(torch.load(tmp_path / 'states.pth', weights_only=True))
        assert draw() == expected
