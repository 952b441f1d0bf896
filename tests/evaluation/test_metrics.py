import gc
import weakref
from dataclasses import replace

import pytest
import torch

from mdeq_mm.deq import (
    Cell,
    EquilibriumLayer,
    PhantomGradient,
    PicardSolver,
    SolveStatus,
)
from mdeq_mm.evaluation import SolverStatistics, SpectralRadius

HOOK = dict(type='ImplicitGradientHook')


@pytest.fixture
def layer():
    """An equilibrium of four numbers, in evaluation mode."""

    class Affine(Cell):
        def forward(self, states, injections):
            return (0.5 * states[0] + injections[0],)

    solver = PicardSolver(max_evals=3, tol=1e-9)
    return EquilibriumLayer(Affine(), solver, PhantomGradient()).eval()


class Spy:
    """Keeps the solutions of the validation."""

    def __init__(self, runner):
        self.solutions = []
        runner.model.backbone.equilibrium.register_pass_hook(self.note)

    def note(self, layer, forward_pass):
        self.solutions.append(forward_pass.solution)

    def joined(self, name):
        return torch.cat([getattr(s, name) for s in self.solutions])


class TestSolverStatistics:
    def test_next_to_another_metric(self, make_runner):
        metric = dict(
            type='SolverStatistics', tolerances=(0.5, 1e-9), curve_at=(1, 3, 99)
        )
        runner = make_runner([HOOK], val_evaluator=[dict(type='RandomMetric'), metric])
        spy = Spy(runner)
        values = runner.val()
        best = torch.cat([s.trace.cummin(0).values.T for s in spy.solutions])
        assert len(best) == 12
        assert 'mean' in values
        residual = spy.joined('residual').mean().item()
        assert values['solver/evals'] == spy.joined('n_evals').float().mean()
        assert values['solver/residual'] == pytest.approx(residual)
        assert values['solver/converged'] == 0
        assert values['solver/reached_1e-09'] == 0
        assert values['solver/evals_to_1e-09'] == 6
        first = [row.le(0.5).nonzero() for row in best]
        reached = [len(index) > 0 for index in first]
        evals = [index[0].item() + 1 if len(index) else 6 for index in first]
        assert values['solver/reached_0.5'] == pytest.approx(sum(reached) / 12)
        assert values['solver/evals_to_0.5'] == pytest.approx(sum(evals) / 12)
        for n, column in ((1, 0), (3, 2), (99, 5)):
            expected = best[:, column].mean().item()
            assert values[f'solver/residual_at_{n}'] == pytest.approx(expected)

    def test_converged(self, make_runner):
        runner = make_runner([HOOK], val_evaluator=dict(type='SolverStatistics'))
        layer = runner.model.backbone.equilibrium
        layer.mode = replace(layer.mode, solver=replace(layer.mode.solver, tol=10))
        spy = Spy(runner)
        assert runner.val()['solver/converged'] == 1
        assert (spy.joined('status') == SolveStatus.CONVERGED).all()

    def test_nothing_in_the_unrolled_mode(self, make_runner):
        runner = make_runner([HOOK], val_evaluator=dict(type='SolverStatistics'))
        layer = runner.model.backbone.equilibrium
        layer.mode = layer.unrolled
        assert runner.val() == {}

    def test_windows_of_one_image_are_averaged(self, layer):
        metric = SolverStatistics(tolerances=())
        solutions = []
        layer.register_pass_hook(lambda _, passed: solutions.append(passed.solution))
        # The relative residuals of this layer are the same at every scale.
        solver = PicardSolver(max_evals=3, tol=1e-9, stop_mode='abs')
        with metric.observing([layer]), layer.using(solver=solver):
            for scale in (0.1, 3.0):
                layer((torch.full((2, 4), scale),))
            metric.process(None, [None] * 2)
        residuals = torch.stack([solution.residual for solution in solutions])
        assert (residuals[1] > 10 * residuals[0]).all()
        expected = residuals.mean(0)
        assert len(metric.results) == 2
        values = metric.evaluate(2)
        assert values['solver/residual'] == pytest.approx(expected.mean().item())

    @pytest.mark.parametrize(
        'arguments', [dict(tolerances=(0.1, -1)), dict(curve_at=(0,))]
    )
    def test_wrong_arguments(self, arguments):
        (name,) = arguments
        with pytest.raises(ValueError, match=f'^{name} must'):
            SolverStatistics(**arguments)


class TestObserving:
    def test_nothing_before_and_behind(self, layer):
        metric, images = SolverStatistics(), torch.rand(3, 4)
        layer((images,))
        with metric.observing([layer]):
            layer((images,))
            metric.process(None, [None] * 3)
        layer((images,))
        assert len(layer._pass_hooks) == 0
        assert len(metric.results) == 3
        with metric.observing([layer]):
            metric.process(None, [])
        assert len(metric.results) == 3

    def test_leftovers_are_dropped(self, layer):
        """Values that were not taken over belong to other images."""
        metric = SolverStatistics()
        with metric.observing([layer]):
            layer((torch.rand(5, 4),))
        with metric.observing([layer]):
            layer((torch.rand(2, 4),))
            metric.process(None, [None] * 2)
        assert len(metric.results) == 2

    def test_ends_with_an_exception(self, layer):
        with pytest.raises(ZeroDivisionError), SolverStatistics().observing([layer]):
            raise ZeroDivisionError
        assert len(layer._pass_hooks) == 0

    def test_training_is_not_measured(self, layer):
        metric = SolverStatistics()
        layer.train()
        with metric.observing([layer]):
            layer((torch.rand(2, 4),))
            metric.process(None, [None] * 2)
        assert metric.results == []

    def test_reset(self, layer):
        metric = SolverStatistics()
        with metric.observing([layer]):
            layer((torch.rand(2, 4),))
            metric.process(None, [None] * 2)
            layer((torch.rand(3, 4),))
            metric.reset()
            metric.process(None, [None] * 3)
        assert metric.results == []

    def test_states_are_not_kept(self, layer):
        metric, states = SolverStatistics(curve_at=(1,)), []
        layer.register_pass_hook(
            lambda _, passed: states.append(weakref.ref(passed.solution.state))
        )
        with metric.observing([layer]):
            layer((torch.rand(2, 4),))
            gc.collect()
            assert states[0]() is None


class TestSpectralRadius:
    def test_of_a_scaled_identity(self, make_runner):
        runner = make_runner([HOOK], val_evaluator=dict(type='SpectralRadius'))
        cell = runner.model.backbone.equilibrium.cell
        factors = torch.linspace(0.1, 0.4, 4)
        cell.forward = lambda states, injections: tuple(
            factors.view(-1, 1, 1, 1) * state + 1 for state in states
        )
        values = runner.val()
        assert values['spectral_radius/max'] == pytest.approx(0.4, rel=1e-4)
        assert values['spectral_radius/mean'] == pytest.approx(0.25, rel=1e-4)

    def test_without_the_hook(self, make_runner):
        runner = make_runner([], val_evaluator=dict(type='SpectralRadius'))
        with pytest.raises(RuntimeError, match="needs dict.type='ImplicitGradientHook"):
            runner.val()

    @pytest.mark.parametrize(
        ('name', 'value'), [('num_power_iters', -1), ('krylov_dim', 0)]
    )
    def test_wrong_arguments(self, name, value):
        with pytest.raises(ValueError, match=f'^{name} must .* got {value}'):
            SpectralRadius(**{name: value})
