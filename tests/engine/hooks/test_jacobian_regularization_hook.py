import pytest
from mmengine.hooks import Hook

from mdeq_mm.deq import squared_frobenius_norm
from mdeq_mm.engine import JacobianRegularizationHook
from mdeq_mm.engine.hooks import jacobian_regularization_hook


class Note(Hook):
    """Notes the budget at the start of each iteration, and the losses after it."""

    priority = 'LOWEST'

    def __init__(self):
        self.losses, self.budgets = [], []

    def before_train_iter(self, runner, *args, **kwargs):
        self.budgets.append(runner.model.backbone.equilibrium.solver.max_evals)

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append(outputs)


def train(runner):
    note = Note()
    runner.register_hook(note)
    runner.train()
    return note


def jacobian(weight=0.5, **kwargs):
    return dict(type='JacobianRegularizationHook', weight=weight, **kwargs)


class TestJacobianRegularizationHook:
    def test_loss_is_added(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook'), jacobian()])
        note = train(runner)
        for outputs in note.losses:
            assert outputs['loss_jacobian'] > 0
            total = outputs['loss'] - outputs['loss_jacobian']
            assert 0 < total < outputs['loss']
        logged, _ = runner.message_hub.get_scalar('train/loss_jacobian').data
        assert len(logged) == 6

    def test_norm_falls(self, make_runner):
        ends = []
        for weight in (0.0, 2.0):
            runner = make_runner(
                [dict(type='ImplicitGradientHook'), jacobian(weight)],
                length=20,
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            )
            norms = []

            def note(layer, solve, norms=norms):
                if layer.training:
                    norms.append(squared_frobenius_norm(*solve.linearize()[::-1], 64))

            runner.model.backbone.equilibrium.register_solve_hook(note)
            runner.train()
            ends.append(norms[-1].mean().item())
        assert ends[1] < 0.8 * ends[0]

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

    def test_frequency_is_reproducible_and_survives_resuming(self, make_runner):
        hooks = [dict(type='ImplicitGradientHook'), jacobian(freq=0.5)]

        def chosen(**kwargs):
            runner = make_runner(hooks, length=kwargs.pop('length', 12), **kwargs)
            note = train(runner)
            return ['loss_jacobian' in outputs for outputs in note.losses]

        whole = chosen()
        assert 2 <= sum(whole) <= 10
        assert chosen() == whole
        chosen(length=6)
        assert chosen(resume=True) == whole[6:]

    def test_accumulated_iterations_share_the_choice(self, make_runner):
        runner = make_runner(
            [dict(type='ImplicitGradientHook'), jacobian(freq=0.5)],
            length=24,
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.01), accumulative_counts=3
            ),
        )
        note = train(runner)
        chosen = ['loss_jacobian' in outputs for outputs in note.losses]
        groups = [chosen[i : i + 3] for i in range(0, 24, 3)]
        assert all(len(set(group)) == 1 for group in groups)
        assert {True, False} <= set(chosen)

    def test_stop_epoch(self, make_runner):
        runner = make_runner(
            [dict(type='ImplicitGradientHook'), jacobian(stop_epoch=1)],
            by_epoch=True,
            length=2,
        )
        note = train(runner)
        chosen = ['loss_jacobian' in outputs for outputs in note.losses]
        assert chosen == [True] * 3 + [False] * 3

    def test_budget_is_shifted_and_restored(self, make_runner):
        runner = make_runner(
            [
                dict(type='ImplicitGradientHook', pretrain_iters=2),
                jacobian(max_evals_delta=2, pretrain_weight=0.1),
            ],
            length=20,
        )
        note = train(runner)
        assert note.budgets[:2] == [6, 6]
        assert set(note.budgets[2:]) == {4, 5, 6, 7}
        assert runner.model.backbone.equilibrium.solver.max_evals == 6

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
