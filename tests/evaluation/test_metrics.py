import pytest
import torch

from mdeq_mm.deq import SolveStatus
from mdeq_mm.evaluation import SolverStatistics, SpectralRadius

HOOK = dict(type='ImplicitGradientHook')


class Spy:
    """Keeps the solutions of the validation."""

    def __init__(self, runner):
        self.solutions = []
        runner.model.backbone.equilibrium.register_forward_hook(self)

    def __call__(self, layer, args, output):
        self.solutions.append(output[1])

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
        runner.model.backbone.equilibrium.solver.tol = 10
        spy = Spy(runner)
        assert runner.val()['solver/converged'] == 1
        assert (spy.joined('status') == SolveStatus.CONVERGED).all()

    def test_nothing_in_the_shallow_mode(self, make_runner):
        runner = make_runner([HOOK], val_evaluator=dict(type='SolverStatistics'))
        runner.model.backbone.equilibrium.shallow = True
        assert runner.val() == {}

    def test_training_is_not_measured(self, make_runner):
        runner = make_runner([HOOK], val_evaluator=dict(type='SolverStatistics'))
        runner.train()
        (metric,) = runner.val_evaluator.metrics
        assert metric._values == metric.results == []

    def test_windows_of_one_image_are_averaged(self):
        metric = SolverStatistics(tolerances=())
        metric.observe([])
        metric._values = [torch.tensor([[2.0, 0.1, 0]]), torch.tensor([[4.0, 0.3, 1]])]
        metric.process(None, [None])
        values = metric.evaluate(1)
        assert values['solver/evals'] == 3
        assert values['solver/residual'] == pytest.approx(0.2)

    @pytest.mark.parametrize(
        'arguments', [dict(tolerances=(0.1, -1)), dict(curve_at=(0,))]
    )
    def test_wrong_arguments(self, arguments):
        (name,) = arguments
        with pytest.raises(ValueError, match=f'^{name} must'):
            SolverStatistics(**arguments)


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
