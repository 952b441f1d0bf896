import copy

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from mdeq_mm.deq import (
    Equilibrium,
    PhantomGradient,
    PicardSolver,
    squared_frobenius_norm,
)
from mdeq_mm.engine import JacobianRegularizationHook
from mdeq_mm.engine.hooks import jacobian_regularization_hook


class Note(Hook):
    """Notes the losses of each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append(outputs)


def train(runner):
    note = Note()
    runner.register_hook(note)
    runner._val_loop = None
    runner.train()
    return note


def jacobian(weight=0.5, **kwargs):
    return dict(type='JacobianRegularizationHook', weight=weight, **kwargs)


class TestTraining:
    def test_loss_is_added(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook'), jacobian()], length=3)
        note = train(runner)
        for outputs in note.losses:
            assert outputs['loss_jacobian'] > 0
            total = outputs['loss'] - outputs['loss_jacobian']
            assert 0 < total < outputs['loss']
        logged, _ = runner.message_hub.get_scalar('train/loss_jacobian').data
        assert len(logged) == 3

    def test_weights_of_the_phases(self, make_runner, monkeypatch):
        # With a constant norm the loss shows the weight.
        def constant(fz, z, num_vectors, create_graph):
            return fz.sum(1) * 0 + z.shape[1]

        monkeypatch.setattr(
            jacobian_regularization_hook, 'squared_frobenius_norm', constant
        )
        runner = make_runner(
            [
                dict(type='ImplicitGradientHook', pretrain_iters=2),
                jacobian(0.5, pretrain_weight=0.03, incremental=2),
            ],
            length=7,
        )
        note = train(runner)
        weights = [outputs['loss_jacobian'].item() for outputs in note.losses]
        expected = [0.03, 0.03, 0.5, 0.5, 0.6, 0.6, 0.7]
        assert weights == pytest.approx(expected, rel=1e-5)

    def test_resumed_run_is_regularised_as_the_uninterrupted_one(self, make_runner):
        hooks = [
            dict(type='ImplicitGradientHook', pretrain_iters=1),
            jacobian(0.0, freq=0.6, incremental=1),
            dict(type='RandomStateHook'),
        ]

        def losses(**kwargs):
            note = train(make_runner(hooks, **kwargs))
            return [float(outputs.get('loss_jacobian', 0)) for outputs in note.losses]

        whole = losses(length=9)
        assert 0.0 in whole[3:]
        assert len(set(whole[3:])) > 1
        losses(length=3)
        assert losses(length=9, resume=True) == whole[3:]

    def test_stop_epoch(self, make_runner):
        runner = make_runner(
            [dict(type='ImplicitGradientHook'), jacobian(stop_epoch=1)],
            by_epoch=True,
            length=2,
        )
        note = train(runner)
        chosen = ['loss_jacobian' in outputs for outputs in note.losses]
        assert chosen == [True] * 3 + [False] * 3


class TestChoice:
    """Which iterations are regularised, on a model of four numbers."""

    @pytest.fixture
    def chosen(self, toy_model, make_fake_runner):
        layer = toy_model.layer
        layer.mode = Equilibrium(PicardSolver(max_evals=1), PhantomGradient(steps=1))

        def run(n_iters, accumulated=1, seed=0, **arguments):
            hook = JacobianRegularizationHook(0.1, **arguments)
            runner = make_fake_runner(toy_model, seed=seed)
            if accumulated > 1:
                runner.optim_wrapper = nn.Module()
                runner.optim_wrapper._accumulative_counts = accumulated
            hook.before_train(runner)
            x, found = torch.rand(1, 4), []
            for runner.iter in range(n_iters):
                hook.before_train_iter(runner)
                found.append('loss_jacobian' in toy_model(x))
                hook.after_train_iter(runner)
            hook.after_train(runner)
            return found

        return run

    @pytest.mark.parametrize('freq', [0.3, 0.5, 0.8])
    def test_frequency(self, chosen, freq):
        n_iters = 400
        share = sum(chosen(n_iters, freq=freq)) / n_iters
        assert share == pytest.approx(freq, abs=0.08)  # 3.2 standard deviations

    def test_every_iteration(self, chosen):
        assert all(chosen(50))

    def test_follows_from_the_seed_of_the_run(self, chosen):
        first = chosen(60, freq=0.5, seed=1)
        torch.manual_seed(5)
        assert chosen(60, freq=0.5, seed=1) == first
        other = chosen(60, freq=0.5, seed=2)
        assert 15 <= sum(a != b for a, b in zip(first, other)) <= 45

    def test_accumulated_iterations_share_it(self, chosen):
        found = chosen(60, accumulated=3, freq=0.5)
        groups = [found[i : i + 3] for i in range(0, 60, 3)]
        assert all(len(set(group)) == 1 for group in groups)
        assert {True, False} <= set(found)

    def test_nothing_is_registered_where_nothing_is_added(
        self, toy_model, make_fake_runner, n_observers
    ):
        runner = make_fake_runner(toy_model)
        for arguments in (
            dict(weight=0.0),
            dict(weight=1.0, stop_epoch=0),
            dict(weight=1.0, freq=1e-9),
        ):
            hook = JacobianRegularizationHook(max_evals_delta=9, **arguments)
            hook.before_train(runner)
            hook.before_train_iter(runner)
            assert n_observers(toy_model) == 0
            assert toy_model.layer.mode == toy_model.layer.configured

    def test_layers_that_do_not_train_are_left_alone(self, toy_model, make_fake_runner):
        layer, runner = toy_model.layer, make_fake_runner(toy_model)
        layer.requires_grad_(False)
        hook = JacobianRegularizationHook(1.0, max_evals_delta=9)
        for runner.iter in range(5):
            hook.before_train_iter(runner)
            assert layer.mode == layer.configured
        # What stands before a frozen layer is trained to keep its Jacobian small.
        toy_model(torch.rand(1, 4))['loss_jacobian'].backward()
        assert toy_model.stem.weight.grad.norm() > 0
        toy_model.stem.requires_grad_(False)
        assert set(toy_model(torch.rand(1, 4))) == {'loss'}

    def test_an_unrolled_teacher_does_not_change_the_weight(
        self, toy_model, make_fake_runner
    ):
        model = nn.ModuleDict(dict(student=toy_model, teacher=copy.deepcopy(toy_model)))
        teacher = model.teacher.requires_grad_(False).layer
        teacher.mode = teacher.unrolled
        hook = JacobianRegularizationHook(1.0, pretrain_weight=0.0)
        hook.before_train_iter(make_fake_runner(model))
        assert len(toy_model.layer._pass_hooks) == 1

    def test_budget_is_shifted_in_the_iteration_alone(
        self, toy_model, make_fake_runner
    ):
        hook = JacobianRegularizationHook(
            0.1, max_evals_delta=2, pretrain_weight=0.1, freq=0.8
        )
        runner, layer = make_fake_runner(toy_model), toy_model.layer
        hook.before_train(runner)
        budgets = []
        for runner.iter in range(40):
            hook.before_train_iter(runner)
            is_chosen = 'loss_jacobian' in toy_model(torch.rand(1, 4))
            budgets.append(layer.mode.solver.max_evals)
            assert is_chosen or budgets[-1] == 6
            hook.after_train_iter(runner)
            assert layer.mode == layer.configured
        assert set(budgets) == {4, 5, 6, 7}
        # Nothing is shifted where nothing is solved, and one evaluation is the least.
        layer.mode = layer.unrolled
        hook.before_train_iter(runner)
        assert layer.mode == layer.unrolled
        hook.after_train_iter(runner)
        layer.mode = Equilibrium(PicardSolver(max_evals=1), PhantomGradient())
        for runner.iter in range(10):
            hook.before_train_iter(runner)
            assert layer.mode.solver.max_evals in (1, 2)
            hook.after_train_iter(runner)

    def test_norm_falls(self, toy_model, make_fake_runner):
        ends = []
        for weight in (0.0, 2.0):
            model, norms = copy.deepcopy(toy_model), []
            hook, runner = JacobianRegularizationHook(weight), make_fake_runner(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for runner.iter in range(30):
                hook.before_train_iter(runner)
                losses = model(torch.rand(8, 4))
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                hook.after_train_iter(runner)

            def note(layer, forward_pass, norms=norms):
                z, fz = forward_pass.linearize()
                norms.append(squared_frobenius_norm(fz, z, 64).mean().item())

            model.layer.register_pass_hook(note)
            model(torch.rand(8, 4))
            ends += norms
        assert ends[1] < 0.8 * ends[0]

    def test_passes_without_gradients_are_left_out(self, toy_model, make_fake_runner):
        hook = JacobianRegularizationHook(1.0)
        hook.before_train_iter(make_fake_runner(toy_model))
        with torch.no_grad():
            assert set(toy_model(torch.rand(1, 4))) == {'loss'}


class TestArguments:
    @pytest.mark.parametrize(
        ('name', 'value'),
        [
            ('weight', -1.0),
            ('pretrain_weight', -0.5),
            ('freq', 0),
            ('freq', 1.5),
            ('num_vectors', 0),
            ('incremental', 0),
            ('stop_epoch', -1),
            ('max_evals_delta', -2),
        ],
    )
    def test_wrong_arguments(self, name, value):
        with pytest.raises(ValueError, match=f'^{name} must .* got {value}'):
            JacobianRegularizationHook(**{'weight': 1.0, name: value})

    def test_model_without_equilibrium(self, make_fake_runner):
        runner = make_fake_runner(nn.Linear(1, 1))
        with pytest.raises(ValueError, match='JacobianRegularizationHook needs .* Lin'):
            JacobianRegularizationHook(1.0).before_train(runner)
