import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import METRICS

from mdeq_mm.benchmark import accuracy_at_budgets
from mdeq_mm.deq import Unrolled

HOOKS = [dict(type='ImplicitGradientHook')]
STATISTICS = dict(type='SolverStatistics', tolerances=())


class Beginnings(Hook):
    """Counts runs."""

    count = 0

    def before_run(self, runner):
        self.count += 1


@pytest.fixture
def runner(make_runner):
    """Tests a tiny classifier with a budget of 6, on 12 images."""

    def make(metric=STATISTICS, **settings):
        loader = dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(type='Images'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        )
        return make_runner(
            HOOKS,
            test_dataloader=loader,
            test_cfg=dict(),
            test_evaluator=metric,
            **settings,
        )

    return make


def test_one_test_per_budget(runner):
    tests = list(accuracy_at_budgets(runner(), [3, 1, 3]))
    assert [test.max_evals for test in tests] == [1, 3, 6]
    for test in tests:
        assert test.n_evals == test.max_evals
        assert test.seconds > 0
        assert test.metrics['solver/evals'] == test.max_evals
        assert test.residual == pytest.approx(test.metrics['solver/residual'])
    residuals = [test.residual for test in tests]
    assert residuals == sorted(residuals, reverse=True)


def test_tolerance(runner):
    (test,) = accuracy_at_budgets(runner(), tol=1e9)
    assert test.n_evals == 1
    assert test.max_evals == 6


def test_nothing_stays(runner):
    run = runner()
    layer = run.model.backbone.equilibrium
    tests = accuracy_at_budgets(run, [2])
    next(tests)
    assert layer.mode is layer.configured
    assert not layer._pass_hooks


def test_nothing_stays_after_an_error(runner, monkeypatch):
    run = runner(metric=dict(type='RandomMetric'))
    layer = run.model.backbone.equilibrium
    monkeypatch.setattr(METRICS.get('RandomMetric'), 'process', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(accuracy_at_budgets(run, [2]))
    assert layer.mode is layer.configured
    assert not layer._pass_hooks


def test_checkpoint_is_loaded_once(runner, tmp_path):
    """Its weights are those that are tested, with every budget."""
    state = runner().model.state_dict()
    state['fc.bias'] += 1
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    run = runner(load_from=str(tmp_path / 'model.pth'))
    run.register_hook(beginnings := Beginnings())
    for _ in accuracy_at_budgets(run, [2]):
        assert torch.equal(run.model.fc.bias, state['fc.bias'])
    # Hooks such as that of averaged weights begin anew with a run.
    assert beginnings.count == 1


def test_checkpoint_of_the_unrolled_phase(runner, tmp_path):
    run = runner()
    run.model.backbone.equilibrium.mode = Unrolled(2)
    torch.save(dict(state_dict=run.model.state_dict()), tmp_path / 'model.pth')
    run = runner(load_from=str(tmp_path / 'model.pth'))
    with pytest.raises(ValueError, match='must be at the equilibrium'):
        next(accuracy_at_budgets(run, [2]))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(budgets=[0]), 'budgets must be an integer of at least 1, got 0'),
        (dict(tol=-1.0), 'tol must be a number of at least 0 or None, got'),
    ],
)
def test_wrong_arguments(runner, settings, message):
    with pytest.raises(ValueError, match=message):
        next(accuracy_at_budgets(runner(), **settings))
