import copy
import gc
import json
import logging
import runpy
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.model import BaseModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mdeq_mm.__main__ import find_tool
from mdeq_mm.deq import SolveStatus, Unrolled
from mdeq_mm.engine.hooks.solve_statistics import (
    SolveNumbers,
    SolveStatistics,
    SolveSums,
)

HOOK = dict(type='ImplicitGradientHook')
NAMES = {
    f'{solve}_{name}'
    for solve in ('forward', 'adjoint')
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
    path = Path(runner._log_dir) / 'vis_data' / f'{runner.timestamp}.json'
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record['step']: record for record in records if 'loss' in record}


def make_numbers(residual, status=SolveStatus.CONVERGED, scale=1.0, n_evals=3):
    residual = torch.as_tensor(residual)
    return SolveNumbers(
        n_evals=torch.full_like(residual, n_evals, dtype=torch.int64),
        residual=residual,
        scale=torch.full_like(residual, scale),
        status=torch.as_tensor(status).expand(len(residual)),
    )


class TestSolveNumbers:
    def test_states_are_not_kept(self):
        state = torch.rand(2, 3, dtype=torch.float64)
        solution = SimpleNamespace(
            state=state,
            residual=torch.rand(2),
            n_evals=torch.ones(2),
            status=torch.zeros(2),
        )
        norm = torch.linalg.vector_norm(state, dim=1)
        for stop_mode, scale in (('abs', norm), ('rel', torch.ones(2))):
            numbers = SolveNumbers.of(solution, stop_mode)
            assert torch.equal(numbers.scale, scale)
            assert all(part.shape == (2,) for part in numbers)


class TestSolveSums:
    @pytest.mark.parametrize('scale', [1.0, 50.0])
    def test_residuals_are_judged_relative_to_the_state(self, scale):
        sums = SolveSums()
        sums.add([make_numbers([0.2 * scale] * 2, scale=2 * scale)])
        assert sums.take()['relative_residual'] == pytest.approx(0.1, rel=1e-5)

    def test_infinite_residuals_are_left_out(self):
        sums = SolveSums()
        status = [SolveStatus.CONVERGED, SolveStatus.BROKEN_DOWN]
        sums.add([make_numbers([0.5, torch.inf], status)])
        sums.add([make_numbers([0.5, torch.inf])])
        values = sums.take()
        assert values['residual'] == values['residual_max'] == 0.5
        assert values['converged'] == 0.75
        assert values['breakdown'] == 0.5

    def test_taking_starts_anew(self):
        sums = SolveSums()
        for residual, n_evals in ((0.5, 9), (0.25, 2)):
            sums.add([make_numbers([residual], n_evals=n_evals)])
            assert sums.n_iters == 1
            values = sums.take()
            assert values['residual_max'] == residual
            assert values['evals_max'] == n_evals
            assert sums.n_iters == 0
        with pytest.raises(RuntimeError, match='no solves'):
            sums.take()

    def test_several_solves_of_one_iteration(self):
        sums = SolveSums()
        broken = make_numbers([0.4], SolveStatus.BROKEN_DOWN, n_evals=5)
        sums.add([make_numbers([0.1, 0.1]), broken, broken])
        values = sums.take()
        assert values['residual'] == pytest.approx(0.25)
        assert values['evals'] == pytest.approx((3 + 3 + 5 + 5) / 4)
        assert values['evals_max'] == 5
        assert values['breakdown'] == 1  # a share of iterations, not of solves

    def test_nothing_is_transferred_before_it_is_taken(self):
        """A tensor on the meta device has no values that could be read."""
        sums = SolveSums()
        with torch.device('meta'):
            for _ in range(3):
                sums.add([make_numbers(torch.rand(2), status=torch.zeros(2))])
        assert sums.n_iters == 3


class TestLogs:
    def test_statistics_are_logged(self, make_runner):
        runner = make_runner([dict(HOOK, pretrain_iters=4)])
        runner.train()
        log = scalars(runner)
        for step in range(1, 5):
            assert NAMES & set(log[step]) == {'forward_evals', 'forward_evals_max'}
            assert log[step]['forward_evals'] == 2  # num_layers
            assert log[step]['forward_evals_max'] == 2
        for step in (5, 6):
            assert set(log[step]) >= NAMES
            assert not any('backward' in name for name in log[step])
            assert 1 <= log[step]['forward_evals'] <= 6
            assert 1 <= log[step]['adjoint_evals'] <= 6
            assert log[step]['forward_residual'] > 0
            assert 0 <= log[step]['forward_converged'] <= 1

    def test_a_line_of_both_phases(self, make_runner):
        """The unrolled iterations of its window are left out."""
        runner = make_runner([dict(HOOK, pretrain_iters=4)], log_interval=3)
        solver = dict(type='PicardSolver', max_evals=5, tol=0.0)
        with runner.model.backbone.equilibrium.using(solver=solver):
            runner.train()
        log = scalars(runner)
        assert [log[step]['forward_evals'] for step in (3, 6)] == [2, 5]

    def test_curves_of_the_stock_tool(self, make_runner, tmp_path, monkeypatch):
        """It plots what every line has, and looks for it in the first one."""
        runner = make_runner([dict(HOOK, pretrain_iters=3)])
        runner.train()
        (log,) = Path(runner._log_dir).glob('vis_data/2*.json')
        tool = str(find_tool('mmpretrain::analysis_tools/analyze_logs.py'))
        out = tmp_path / 'curve.png'
        arguments = [tool, 'plot_curve', str(log), '--keys', 'forward_evals']
        monkeypatch.setattr(sys, 'argv', [*arguments, '--out', str(out)])
        monkeypatch.setenv('MPLBACKEND', 'agg')
        runpy.run_path(tool, run_name='__main__')
        plt.close('all')
        assert out.stat().st_size > 1000

    def test_statistics_are_means_over_the_batch(self, make_runner):
        runner = make_runner([HOOK], length=1)
        passes = []
        layer = runner.model.backbone.equilibrium
        handle = layer.register_pass_hook(lambda _, passed: passes.append(passed))
        runner._val_loop = None
        runner.train()
        handle.remove()
        log = scalars(runner)[1]
        (forward_pass,) = passes
        for name, part in (
            ('forward', forward_pass.solution),
            ('adjoint', forward_pass.adjoint),
        ):
            n_evals, residual = part.n_evals.float().mean(), part.residual.mean()
            assert log[f'{name}_evals'] == pytest.approx(n_evals.item())
            assert log[f'{name}_evals_max'] == part.n_evals.max()
            assert log[f'{name}_residual'] == pytest.approx(residual.item())
            assert log[f'{name}_residual_max'] == part.residual.max()
            assert log[f'{name}_converged'] == part.converged.float().mean()
            assert log[f'{name}_breakdown'] == 0

    def test_iterations_that_are_not_logged(self, make_runner, monkeypatch):
        runner = make_runner([HOOK], length=6, log_interval=3)
        means, maxima, transfers = [], [], []

        def observe(layer, forward_pass):
            if layer.training:
                means.append(forward_pass.solution.residual.mean().item())
                maxima.append(forward_pass.solution.residual.max().item())

        take = SolveSums.take

        def count(sums):
            transfers.append(runner.iter)
            return take(sums)

        monkeypatch.setattr(SolveSums, 'take', count)
        runner.model.backbone.equilibrium.register_pass_hook(observe)
        runner.train()
        log = scalars(runner)
        assert set(log) == {3, 6}
        for step in (3, 6):
            window = slice(step - 3, step)
            mean = sum(means[window]) / 3
            assert log[step]['forward_residual'] == pytest.approx(mean)
            maximum = pytest.approx(max(maxima[window]))
            assert log[step]['forward_residual_max'] == maximum
        # One transfer for the forward solves and one for the adjoint ones.
        assert transfers == [2, 2, 5, 5]

    def test_tensorboard_and_json_hold_the_statistics(self, make_runner, tmp_path):
        runner = make_runner(
            [HOOK],
            length=2,
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


class TestWarnings:
    def test_missed_equilibrium_is_said_once(self, make_runner, caplog):
        for limit, times in ((0.05, 1), (None, 0)):
            runner = make_runner([dict(HOOK, warn_residual=limit)], length=3)
            runner.logger.addHandler(caplog.handler)
            with caplog.at_level(logging.WARNING):
                runner.train()
            said = [r for r in caplog.records if 'not reached' in r.getMessage()]
            assert len(said) == times
            caplog.clear()

    def test_breakdown_is_said_once(self, make_runner, caplog):
        runner = make_runner([HOOK], length=3)
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
        assert '100 % of the iterations up to 1.' in said[0]
        assert 'nan' not in json.dumps(scalars(runner)[1]['forward_residual']).lower()

    @pytest.mark.parametrize('value', [0, -1.0, float('nan')])
    def test_wrong_warn_residual(self, value):
        with pytest.raises(ValueError, match='^warn_residual must be a positive'):
            SolveStatistics(warn_residual=value)


class TestWhatIsObserved:
    @pytest.fixture
    def train(self, toy_model, make_fake_runner):
        """Trains a toy model and returns what was logged, one list per name."""

        def run(
            hook, n_iters=1, interval=1, in_iteration=lambda: None, model=toy_model
        ):
            runner = make_fake_runner(model)
            runner.hooks = [hook, LoggerHook(interval=interval)]
            hook.before_train(runner)
            for runner.iter in range(n_iters):
                hook.before_train_iter(runner)
                model(torch.rand(3, 4))['loss'].backward()
                in_iteration()
                hook.after_train_iter(runner, batch_idx=runner.iter)
            hook.after_train(runner)
            return {
                name.removeprefix('train/'): buffer.data[0].tolist()
                for name, buffer in runner.message_hub.log_scalars.items()
            }

        return run

    def test_nothing_outside_an_iteration(self, toy_model, train, n_observers):
        hook = SolveStatistics()
        log = train(hook, n_iters=2)
        assert len(log['forward_evals']) == len(log['adjoint_evals']) == 2
        assert n_observers(toy_model) == 0
        states = []
        toy_model.layer.register_pass_hook(
            lambda layer, forward_pass: states.append(weakref.ref(forward_pass.state))
        )
        for _ in range(5):
            toy_model(torch.rand(3, 4))['loss'].backward()
        gc.collect()
        assert not any(state() is not None for state in states)
        assert hook._solves == {}

    def test_states_are_not_kept_within_an_iteration(self, toy_model, train):
        states, alive = [], []
        toy_model.layer.register_pass_hook(
            lambda layer, forward_pass: states.extend(
                [
                    weakref.ref(forward_pass),
                    weakref.ref(forward_pass.state),
                    weakref.ref(forward_pass.solution),
                ]
            )
        )

        def look():
            gc.collect()
            alive.extend(state() is not None for state in states)

        train(SolveStatistics(), in_iteration=look)
        assert alive == [False] * 3

    def test_a_second_training_starts_anew(self, toy_model, train):
        """What the first one has not logged is not in the log of the second."""
        hook, layer = SolveStatistics(), toy_model.layer
        assert train(hook, n_iters=1, interval=2) == {}
        with layer.using(solver=dict(type='PicardSolver', max_evals=2)):
            log = train(hook, n_iters=2, interval=2)
        assert log['forward_evals_max'] == [2]
        assert log['forward_evals'] == [2]

    def test_layers_that_do_not_train_are_left_out(self, toy_model, train):
        toy_model.layer.requires_grad_(False)
        # The adjoint is still solved for, to train what stands before the layer.
        assert len(train(SolveStatistics())['adjoint_evals']) == 1

        class WithTeacher(BaseModel):
            def __init__(self):
                super().__init__()
                self.student = copy.deepcopy(toy_model).requires_grad_(True)
                self.teacher = toy_model.requires_grad_(False)

            def forward(self, x):
                self.teacher(torch.full((50, 4), torch.nan))
                return self.student(x)

        log = train(SolveStatistics(), model=WithTeacher().train())
        assert log['forward_breakdown'][-1] == 0

    def test_several_unrolled_passes(self, toy_model, train):
        """Of several images each, with depths of their own."""
        layer = toy_model.layer
        layer.mode = layer.unrolled

        def another():
            with layer.using(mode=Unrolled(6)):
                toy_model(torch.rand(1, 4))

        log = train(SolveStatistics(), n_iters=2, interval=2, in_iteration=another)
        assert log == {'forward_evals': [3.0], 'forward_evals_max': [6]}

    def test_every_line_is_of_its_own_iterations(self, toy_model, train):
        layer = toy_model.layer
        depths = iter((2, 2, 4, 4))

        def deepen():
            layer.mode = Unrolled(next(depths))

        layer.mode = Unrolled(2)
        log = train(SolveStatistics(), n_iters=4, interval=2, in_iteration=deepen)
        assert log == {'forward_evals': [2, 3], 'forward_evals_max': [2, 4]}

    def test_evaluation_in_an_iteration_is_left_out(self, toy_model, train):
        def evaluate():
            toy_model.eval()
            with torch.no_grad():
                toy_model(torch.full((50, 4), torch.nan), mode='tensor')
            toy_model.train()

        log = train(SolveStatistics(), in_iteration=evaluate)
        assert log['forward_breakdown'] == [0]

    def test_a_backward_pass_after_the_iteration(self, toy_model, make_fake_runner):
        """Its adjoint solve is not counted as one of the next iteration."""
        hook, runner = SolveStatistics(), make_fake_runner(toy_model)
        runner.hooks = [LoggerHook(interval=2)]
        hook.before_train(runner)
        hook.before_train_iter(runner)
        loss = toy_model(torch.rand(3, 4))['loss']
        hook.after_train_iter(runner, batch_idx=0)
        loss.backward()
        hook.before_train_iter(runner)
        hook.after_train_iter(runner, batch_idx=1)
        assert 'train/forward_evals' in runner.message_hub.log_scalars
        assert 'train/adjoint_evals' not in runner.message_hub.log_scalars
