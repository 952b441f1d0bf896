import copy
import logging
from dataclasses import replace

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mdeq_mm.deq import Equilibrium, PhantomGradient, PicardSolver, Unrolled
from mdeq_mm.engine.hooks.equilibrium_schedule import EquilibriumSchedule
from mdeq_mm.models import MDEQ

LOOSE = dict(type='PicardSolver', max_evals=2)
PHANTOM = dict(type='PhantomGradient', steps=1)


class Spy:
    """Notes the mode of every pass, in training and in validation."""

    def __init__(self, runner):
        self.train, self.val = [], []
        runner.model.backbone.equilibrium.register_pass_hook(self.note)

    def note(self, layer, forward_pass):
        modes = self.train if layer.training else self.val
        modes.append(forward_pass.mode)

    @staticmethod
    def is_unrolled(modes):
        return [isinstance(mode, Unrolled) for mode in modes]


class TestTraining:
    def test_schedule(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        spy = Spy(runner)
        runner.train()
        assert spy.is_unrolled(spy.train) == [True] * 4 + [False] * 2
        # Validation follows iterations 3 and 6, three batches each.
        assert spy.is_unrolled(spy.val) == [True] * 3 + [False] * 3

    def test_equilibrium_from_the_start(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook')], length=3)
        spy = Spy(runner)
        runner.train()
        assert spy.is_unrolled(spy.train) == [False] * 3

    def test_pretraining_in_epochs(self, make_runner):
        runner = make_runner(
            [dict(type='ImplicitGradientHook', pretrain_epochs=1)],
            by_epoch=True,
            length=2,
        )
        spy = Spy(runner)
        runner.train()
        assert spy.is_unrolled(spy.train) == [True] * 3 + [False] * 3

    def test_resuming_continues_the_schedule(self, make_runner):
        hooks = [dict(type='ImplicitGradientHook', pretrain_iters=4)]
        make_runner(hooks, length=3).train()
        runner = make_runner(hooks, resume=True)
        spy = Spy(runner)
        runner.train()
        assert spy.is_unrolled(spy.train) == [True, False, False]

    def test_phases(self, make_runner):
        phases = [dict(begin=2, gradient=PHANTOM, forward_solver=LOOSE), dict(begin=4)]
        hook = dict(type='ImplicitGradientHook', pretrain_iters=1, phases=phases)
        runner = make_runner([hook])
        spy = Spy(runner)
        runner.train()
        configured = runner.model.backbone.equilibrium.configured
        assert isinstance(spy.train[0], Unrolled)
        second = spy.train[2]
        assert second.solver == PicardSolver(max_evals=2)
        assert isinstance(second.gradient, PhantomGradient)
        assert spy.train[1:] == [configured, second, second, configured, configured]
        # Validation after iteration 3 is in the phase of that iteration.
        assert spy.val == [second] * 3 + [configured] * 3

    def test_a_phase_changes_what_it_names(self, toy_model, make_fake_runner):
        hook = EquilibriumSchedule(phases=[dict(begin=0, forward_solver=LOOSE)])
        hook.before_train_iter(make_fake_runner(toy_model))
        layer = toy_model.layer
        assert layer.mode == replace(layer.configured, solver=PicardSolver(max_evals=2))

    def test_number_of_unrolled_iterations_is_published(
        self, toy_model, make_fake_runner
    ):
        for arguments, expected in (
            (dict(), 0),
            (dict(pretrain_iters=7), 7),
            (dict(pretrain_epochs=3), 15),
        ):
            runner = make_fake_runner(toy_model, train_dataloader=range(5))
            EquilibriumSchedule(**arguments).before_train(runner)
            assert runner.message_hub.get_info('mdeq_unrolled_iters') == expected
            saved = runner.message_hub.state_dict()['runtime_info']
            assert 'mdeq_unrolled_iters' not in saved

    def test_changes_are_in_the_log(self, toy_model, make_fake_runner, caplog):
        phases = [dict(begin=4, forward_solver=LOOSE)]
        hook = EquilibriumSchedule(pretrain_iters=2, phases=phases)
        runner = make_fake_runner(toy_model)
        caplog.set_level('INFO')
        for _ in range(2):  # two trainings, each with a log of its own
            hook.before_train(runner)
            for runner.iter in range(6):
                hook.before_train_iter(runner)
        said = [record.getMessage().split(':')[0] for record in caplog.records]
        expected = [
            'MDEQ trains unrolled from iteration 1 on',
            'MDEQ trains at the equilibrium from iteration 3 on',
            'MDEQ trains at the equilibrium from iteration 5 on',
        ]
        assert said == expected * 2
        assert 'PicardSolver(max_evals=2' in caplog.records[2].getMessage()


class TestFrozenLayers:
    """Layers that do not train keep their own mode."""

    def test_teacher(self, make_fake_runner):
        arch = dict(channels=(8, 16), num_groups=4)
        model = nn.ModuleDict(
            dict(
                student=MDEQ(arch=arch),
                teacher=MDEQ(arch=arch).requires_grad_(False).eval(),
            )
        )
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            before = model.teacher(images)[0]
        hook = EquilibriumSchedule(
            pretrain_iters=1, phases=[dict(begin=0, forward_solver=LOOSE)]
        )
        runner = make_fake_runner(model)
        for runner.iter in range(3):
            hook.before_train_iter(runner)
            with torch.no_grad():
                assert torch.equal(model.teacher(images)[0], before)
            student = model.student.equilibrium.mode
            assert isinstance(student, Unrolled) == (runner.iter == 0)
        # mmengine puts the whole model into training mode.
        model.train()
        hook.before_train_iter(runner)
        teacher = model.teacher.equilibrium
        assert teacher.mode == teacher.configured

    def test_frozen_stages(self, make_runner):
        model = dict(type='Classifier', dropout=0.0, frozen_stages=1)
        phases = [dict(begin=0, forward_solver=LOOSE)]
        hook = dict(type='ImplicitGradientHook', pretrain_iters=1, phases=phases)
        runner = make_runner([hook], model=model, length=3)
        spy = Spy(runner)
        runner.train()
        layer = runner.model.backbone.equilibrium
        assert spy.train == []  # the layer is in evaluation mode throughout
        assert spy.val == [layer.configured] * 6


class TestRunningAverages:
    """A target network takes the mode of the network whose average it is."""

    def test_mode(self, make_fake_runner):
        online = MDEQ(arch=dict(channels=(8, 16), num_groups=4))
        target = ExponentialMovingAverage(online)
        model = nn.ModuleDict(dict(online=online, target=target)).train()
        hook = EquilibriumSchedule(
            pretrain_iters=1, phases=[dict(begin=2, forward_solver=LOOSE)]
        )
        runner = make_fake_runner(model)
        layer, average = online.equilibrium, target.module.equilibrium
        loose = PicardSolver(max_evals=2)
        for runner.iter in range(3):
            hook.before_train_iter(runner)
            if runner.iter == 0:
                assert layer.mode == average.mode == layer.unrolled
            else:
                expected = layer.configured.solver if runner.iter == 1 else loose
                assert layer.mode.solver == average.mode.solver == expected
        average.mode = average.configured
        hook.after_load_checkpoint(runner, dict(meta=dict(iter=3)))
        assert average.mode.solver == loose

    def test_is_announced_once(self, make_fake_runner, caplog):
        online = MDEQ(arch=dict(channels=(8, 16), num_groups=4))
        target = ExponentialMovingAverage(online)
        model = nn.ModuleDict(dict(online=online, target=target)).train()
        with caplog.at_level(logging.INFO):
            EquilibriumSchedule().before_train_iter(make_fake_runner(model))
        said = [r for r in caplog.records if 'MDEQ trains' in r.getMessage()]
        assert len(said) == 1


@pytest.mark.versions
class TestCheckpoints:
    """The mode is in the metadata of the state dict, which torch writes."""

    @pytest.fixture
    def hook(self):
        return dict(
            type='ImplicitGradientHook',
            pretrain_iters=2,
            phases=[dict(begin=3, forward_solver=LOOSE)],
        )

    @pytest.mark.parametrize(
        ('length', 'expected'),
        # iter_3 is written exactly where the phase begins, and is not of that phase.
        [(2, 'unrolled'), (3, 'configured'), (4, 'phase')],
    )
    def test_mode_of_a_checkpoint(self, make_runner, tmp_path, hook, length, expected):
        runner = make_runner([hook], length=length)
        runner.train()
        path = str(tmp_path / 'work_dir' / f'iter_{length}.pth')
        other = make_runner([hook], load_from=path)
        spy = Spy(other)
        other.val()
        layer = other.model.backbone.equilibrium
        phase = replace(layer.configured, solver=PicardSolver(max_evals=2))
        modes = dict(unrolled=layer.unrolled, configured=layer.configured, phase=phase)
        assert layer.mode == modes[expected]
        assert spy.val == [layer.mode] * 3
        # A second run of the same runner still knows the settings of the model.
        other.load_checkpoint(path)
        assert layer.mode == modes[expected]

    def test_a_frozen_layer_keeps_its_own(self, make_runner, tmp_path, hook):
        make_runner([hook], length=4).train()
        model = dict(type='Classifier', dropout=0.2, frozen_stages=1)
        other = make_runner([hook], model=model)
        other.load_checkpoint(str(tmp_path / 'work_dir' / 'iter_4.pth'))
        layer = other.model.backbone.equilibrium
        assert layer.mode == layer.configured

    def test_best_checkpoint_at_the_beginning_of_a_phase(
        self, make_runner, tmp_path, hook
    ):
        runner = make_runner([hook], length=3)
        saver = dict(interval=9, by_epoch=False, save_best='mean', rule='less')
        runner.register_hook(dict(type='CheckpointHook', **saver))
        runner.train()
        path = tmp_path / 'work_dir' / 'best_mean_iter_3.pth'
        other = make_runner([hook])
        other.load_checkpoint(str(path))
        layer = other.model.backbone.equilibrium
        assert layer.mode == layer.configured

    def test_checkpoints_written_before_the_state_dict_held_the_mode(
        self, make_runner, tmp_path, hook
    ):
        runner = make_runner([hook])
        layer = runner.model.backbone.equilibrium
        state_dict = runner.model.state_dict()
        for metadata in state_dict._metadata.values():
            metadata.pop('unrolled', None)
        path = str(tmp_path / 'old.pth')
        for done, unrolled, max_evals in ((2, True, 0), (3, False, 6), (4, False, 2)):
            meta = dict(iter=done, mdeq_shallow=unrolled)
            torch.save(dict(state_dict=state_dict, meta=meta), path)
            layer.mode = layer.configured if unrolled else layer.unrolled
            runner.load_checkpoint(path)
            if unrolled:
                assert layer.mode == layer.unrolled
            else:
                assert isinstance(layer.mode, Equilibrium)
                assert layer.mode.solver.max_evals == max_evals

    def test_the_state_dict_wins_over_the_old_key(self, make_runner, tmp_path, hook):
        runner = make_runner([hook])
        layer = runner.model.backbone.equilibrium
        path = str(tmp_path / 'both.pth')
        for mode in (layer.unrolled, layer.configured):
            layer.mode = mode
            state_dict = copy.deepcopy(runner.model.state_dict())
            wrong = mode == layer.configured
            meta = dict(iter=1, mdeq_shallow=wrong)
            torch.save(dict(state_dict=state_dict, meta=meta), path)
            runner.load_checkpoint(path)
            assert layer.mode == mode

    def test_no_new_checkpoint_has_the_old_key(self, make_runner, tmp_path, hook):
        make_runner([hook], length=3).train()
        path = tmp_path / 'work_dir' / 'iter_3.pth'
        assert 'mdeq_shallow' not in torch.load(path, weights_only=False)['meta']

    def test_other_checkpoints_are_for_the_equilibrium(self, make_runner, tmp_path):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        layer = runner.model.backbone.equilibrium
        layer.mode = layer.unrolled
        plain = dict(runner.model.state_dict())  # a dict has no metadata
        torch.save(plain, tmp_path / 'plain.pth')
        runner.load_checkpoint(str(tmp_path / 'plain.pth'))
        assert layer.mode == layer.configured


class TestArguments:
    @pytest.mark.parametrize('value', [-1, 2.5, True])
    @pytest.mark.parametrize('name', ['pretrain_iters', 'pretrain_epochs'])
    def test_wrong_length_of_pretraining(self, name, value):
        with pytest.raises(ValueError, match=f'{name} must .* got {value}'):
            EquilibriumSchedule(**{name: value})

    def test_one_length_of_pretraining(self):
        with pytest.raises(ValueError, match='at most one .* got 5 and 2'):
            EquilibriumSchedule(pretrain_iters=5, pretrain_epochs=2)

    @pytest.mark.parametrize(
        ('phases', 'error', 'match'),
        [
            ([dict(gradient=dict())], TypeError, "key 'begin'"),
            ([dict(begin=0, solver=dict())], TypeError, "'solver'"),
            ([dict(begin=-1)], ValueError, 'begin must .* got -1'),
            ([dict(begin=3), dict(begin=3)], ValueError, r'one after .* \[3, 3\]'),
            (
                [dict(begin=0, gradient=dict(type='Nothing'))],
                ValueError,
                "phases.gradient: unknown .*'Nothing'",
            ),
        ],
    )
    def test_wrong_phases(self, phases, error, match):
        with pytest.raises(error, match=match):
            EquilibriumSchedule(phases=phases)
