import json
import logging

import pytest
import torch
from mmengine.model import BaseModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mdeq_mm.engine import ImplicitGradientHook
from mdeq_mm.engine.hooks.statistics_sum import StatisticsSum

NAMES = {
    f'{solve}_{name}'
    for solve in ('forward', 'backward')
    for name in (
        'evals',
        'evals_max',
        'residual',
        'residual_max',
        'converged',
        'breakdown',
    )
}


def scalars(runner):
    """The JSON log, a dict for each logged iteration."""
    path = f'{runner._log_dir}/vis_data/{runner.timestamp}.json'
    with open(path) as file:
        records = [json.loads(line) for line in file]
    return {record['step']: record for record in records if 'loss' in record}


class Spy:
    """Notes in which mode the layer runs."""

    def __init__(self, runner):
        self.train, self.val = [], []
        runner.model.backbone.equilibrium.register_forward_hook(self)

    def __call__(self, layer, args, output):
        (self.train if layer.training else self.val).append(layer.shallow)


class TestImplicitGradientHook:
    def test_schedule(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        spy = Spy(runner)
        runner.train()
        assert spy.train == [True] * 4 + [False] * 2
        # Validation follows iterations 3 and 6, three batches each.
        assert spy.val == [True] * 3 + [False] * 3

    def test_equilibrium_from_the_start(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        spy = Spy(runner)
        runner.train()
        assert spy.train == [False] * 6

    def test_statistics_are_logged(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        runner.train()
        log = scalars(runner)
        for step in range(1, 5):
            assert not NAMES & set(log[step])
        for step in (5, 6):
            assert set(log[step]) >= NAMES
            assert 1 <= log[step]['forward_evals'] <= 6
            assert 1 <= log[step]['backward_evals'] <= 6
            assert log[step]['forward_residual'] > 0
            assert 0 <= log[step]['forward_converged'] <= 1

    def test_statistics_are_means_over_the_batch(self, make_runner):
        runner = make_runner([dict(type='ImplicitGradientHook')], length=1)
        solutions = []
        runner.model.backbone.equilibrium.register_forward_hook(
            lambda layer, args, output: solutions.append(output[1])
        )
        runner.train()
        log = scalars(runner)[1]
        solution = solutions[0]
        for name, part in (('forward', solution), ('backward', solution.adjoint)):
            n_evals, residual = part.n_evals.float().mean(), part.residual.mean()
            assert log[f'{name}_evals'] == pytest.approx(n_evals.item())
            assert log[f'{name}_evals_max'] == part.n_evals.max()
            assert log[f'{name}_residual'] == pytest.approx(residual.item())
            assert log[f'{name}_residual_max'] == part.residual.max()
            assert log[f'{name}_converged'] == part.converged.float().mean()
            assert log[f'{name}_breakdown'] == 0

    def test_statistics_of_iterations_that_are_not_logged(self, make_runner):
        runner = make_runner(
            [dict(type='ImplicitGradientHook')], length=6, log_interval=3
        )
        means, maxima = [], []

        def observe(layer, args, output):
            if layer.training:
                means.append(output[1].residual.mean().item())
                maxima.append(output[1].residual.max().item())

        runner.model.backbone.equilibrium.register_forward_hook(observe)
        runner.train()
        log = scalars(runner)
        assert set(log) == {3, 6}
        for step in (3, 6):
            window = slice(step - 3, step)
            mean = sum(means[window]) / 3
            assert log[step]['forward_residual'] == pytest.approx(mean)
            assert log[step]['forward_residual_max'] == pytest.approx(
                max(maxima[window])
            )

    def test_nothing_is_transferred_in_between(self, make_runner, monkeypatch):
        runner = make_runner(
            [dict(type='ImplicitGradientHook')], length=6, log_interval=3
        )
        transfers = []
        take = StatisticsSum.take

        def count(statistics):
            transfers.append(statistics.name)
            return take(statistics)

        monkeypatch.setattr(StatisticsSum, 'take', count)
        runner.train()
        assert transfers == ['forward', 'backward'] * 2

    def test_tensorboard_and_json_hold_the_statistics(self, make_runner, tmp_path):
        runner = make_runner(
            [dict(type='ImplicitGradientHook')],
            visualizer=dict(
                type='Visualizer',
                vis_backends=[
                    dict(type='LocalVisBackend'),
                    dict(type='TensorboardVisBackend'),
                ],
                name=f'tensorboard-{tmp_path.name}',
            ),
        )
        runner.train()
        runner.visualizer.close()
        events = EventAccumulator(f'{runner._log_dir}/vis_data')
        events.Reload()
        assert set(events.Tags()['scalars']) >= NAMES
        log = scalars(runner)
        for name in NAMES:
            for event in events.Scalars(name):
                assert event.value == pytest.approx(log[event.step][name])

    def test_pretraining_in_epochs(self, make_runner):
        runner = make_runner(
            [dict(type='ImplicitGradientHook', pretrain_epochs=1)],
            by_epoch=True,
            length=2,
        )
        spy = Spy(runner)
        runner.train()
        assert spy.train == [True] * 3 + [False] * 3

    def test_phases(self, make_runner, tmp_path):
        phantom = dict(type='PhantomGradient', steps=1)
        loose = dict(type='PicardSolver', max_evals=2)
        hooks = [
            dict(
                type='ImplicitGradientHook',
                pretrain_iters=1,
                phases=[
                    dict(begin=2, gradient=phantom, forward_solver=loose),
                    dict(begin=4),
                ],
            )
        ]
        runner = make_runner(hooks)
        used = []

        def note(layer, solve):
            names = type(layer.solver).__name__, type(layer.gradient).__name__
            used.append((layer.training, *names))

        runner.model.backbone.equilibrium.register_solve_hook(note)
        runner.train()
        configured = ('BroydenSolver', 'ImplicitGradient')
        second = ('PicardSolver', 'PhantomGradient')
        trained = [names[1:] for names in used if names[0]]
        assert trained == [configured] * 2 + [second] * 2 + [configured] * 2
        # Validation after iteration 3 is in the phase of that iteration.
        assert [n[1:] for n in used if not n[0]] == [second] * 3 + [configured] * 3

        other = make_runner(hooks, load_from=str(tmp_path / 'work_dir' / 'iter_3.pth'))
        other.val()
        assert other.model.backbone.equilibrium.solver.max_evals == 2
        # A second run of the same runner still knows the settings of the model.
        other.val()
        other.load_checkpoint(str(tmp_path / 'work_dir' / 'iter_6.pth'))
        assert other.model.backbone.equilibrium.solver.max_evals == 6

    def test_missed_equilibrium_is_said_once(self, make_runner, caplog):
        for limit, times in ((0.05, 1), (None, 0)):
            runner = make_runner(
                [dict(type='ImplicitGradientHook', warn_residual=limit)]
            )
            runner.logger.addHandler(caplog.handler)
            with caplog.at_level(logging.WARNING):
                runner.train()
            said = [r for r in caplog.records if 'not reached' in r.getMessage()]
            assert len(said) == times
            caplog.clear()

    def test_mode_belongs_to_the_checkpoint(self, make_runner, tmp_path):
        runner = make_runner([dict(type='ImplicitGradientHook', pretrain_iters=4)])
        runner.train()
        for step, shallow in ((3, True), (6, False)):
            other = make_runner(
                [dict(type='ImplicitGradientHook', pretrain_iters=4)],
                load_from=str(tmp_path / 'work_dir' / f'iter_{step}.pth'),
            )
            spy = Spy(other)
            other.val()
            assert spy.val == [shallow] * 3

    def test_other_checkpoints_are_for_the_equilibrium(self, make_runner, tmp_path):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        runner.model.backbone.equilibrium.shallow = True
        torch.save(runner.model.state_dict(), tmp_path / 'plain.pth')
        runner.load_checkpoint(str(tmp_path / 'plain.pth'))
        assert not runner.model.backbone.equilibrium.shallow

    def test_resuming_continues_the_schedule(self, make_runner, tmp_path):
        hooks = [dict(type='ImplicitGradientHook', pretrain_iters=4)]
        make_runner(hooks, length=3).train()
        runner = make_runner(hooks, resume=True)
        spy = Spy(runner)
        runner.train()
        assert spy.train == [True, False, False]

    def test_breakdown_is_said_once(self, make_runner, caplog):
        runner = make_runner([dict(type='ImplicitGradientHook')])
        cell = runner.model.backbone.equilibrium.cell

        def poison(module, args, output):
            output[0][0] = torch.nan

        cell.register_forward_hook(poison)
        runner.logger.addHandler(caplog.handler)
        with caplog.at_level(logging.WARNING):
            runner.train()
        said = [r.getMessage() for r in caplog.records if 'NaN' in r.getMessage()]
        assert len(said) == 1
        assert 'forward solve' in said[0]
        assert '100 % of the iterations up to 1 ' in said[0]
        assert 'nan' not in json.dumps(scalars(runner)[1]['forward_residual']).lower()

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

    @pytest.mark.parametrize('value', [-1, 2.5])
    def test_wrong_pretrain_iters(self, value):
        with pytest.raises(ValueError, match=f'pretrain_iters must .* got {value}'):
            ImplicitGradientHook(pretrain_iters=value)

    def test_one_length_of_pretraining(self):
        with pytest.raises(ValueError, match='at most one .* got 5 and 2'):
            ImplicitGradientHook(pretrain_iters=5, pretrain_epochs=2)

    def test_wrong_warn_residual(self):
        with pytest.raises(ValueError, match='warn_residual must .* got 0'):
            ImplicitGradientHook(warn_residual=0)

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
            ImplicitGradientHook(phases=phases)
