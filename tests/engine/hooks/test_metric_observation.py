import gc

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook

from mdeq_mm.deq import PicardSolver
from mdeq_mm.engine import ImplicitGradientHook
from mdeq_mm.engine.hooks.metric_observation import MetricObservation
from mdeq_mm.evaluation import SolverStatistics, SpectralRadius

HOOK = dict(type='ImplicitGradientHook')


class Preview(Hook):
    """Predicts other images, in other numbers, wherever a hook can."""

    priority = 'LOWEST'

    def predict(self, runner, *args, **kwargs):
        model = runner.model
        training = model.training
        model.eval()
        with torch.no_grad():
            model(torch.rand(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64))
        model.train(training)

    before_train_iter = after_train_iter = predict
    before_val_epoch = after_val_epoch = after_val_iter = predict
    before_test_epoch = after_test_epoch = after_test_iter = predict


@pytest.fixture
def expected(make_runner):
    """What a process that only validates finds."""

    def values(model):
        runner = make_runner(
            [HOOK], model=model, val_evaluator=dict(type='SolverStatistics')
        )
        return runner.val()

    return values


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_values_are_those_of_the_images_of_the_validation(
    make_runner, expected, frozen_stages
):
    """A process that trains, tests and validates finds what one finds that validates.

    Between the images of the validation another hook predicts others.
    """
    model = dict(type='Classifier', dropout=0.0, frozen_stages=frozen_stages)
    runner = make_runner(
        [HOOK, Preview()],
        model=model,
        length=3,
        val_evaluator=dict(type='SolverStatistics'),
        test_dataloader=dict(
            batch_size=5,
            dataset=dict(type='Images'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        test_cfg=dict(),
        test_evaluator=dict(type='SolverStatistics'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    # Augmentation would draw other images each time.
    for loader in (runner._val_dataloader, runner._test_dataloader):
        loader['dataset'] = [(image, 0) for image in torch.rand(12, 3, 16, 16)]
    validate = runner.val
    first = validate()
    assert first['solver/residual'] > 0
    runner.train()
    # Training has moved the running statistics of the batch norms.
    reference = validate()
    tested = runner.test()
    Preview().predict(runner)
    assert validate() == reference
    assert tested.keys() == reference.keys()
    # Another batch size, the same images.
    for name, value in runner.test().items():
        assert value == pytest.approx(tested[name])


class TestMetricObservation:
    @pytest.fixture
    def metric(self):
        return SolverStatistics(tolerances=())

    @pytest.fixture
    def runner(self, toy_model, make_fake_runner, metric):
        return make_fake_runner(
            toy_model.eval(),
            val_evaluator=Evaluator(metric),
            test_evaluator=Evaluator(metric),
        )

    def predict(self, runner, n_images):
        with torch.no_grad():
            runner.model(torch.rand(n_images, 4), mode='tensor')

    @pytest.mark.parametrize('kind', ['val', 'test'])
    def test_only_between_beginning_and_end(self, runner, metric, kind, n_observers):
        hook = MetricObservation()
        getattr(hook, f'before_{kind}')(runner)
        for _ in range(2):
            self.predict(runner, 5)
            getattr(hook, f'before_{kind}_iter')(runner)
            assert n_observers(runner.model) == 1
            self.predict(runner, 3)
            metric.process({}, [{}] * 3)
            getattr(hook, f'after_{kind}_iter')(runner)
            self.predict(runner, 1)
        assert len(metric.results) == 6
        assert n_observers(runner.model) == 0

    def test_after_an_interrupted_validation(self, runner, metric, n_observers):
        hook = MetricObservation()
        hook.before_val(runner)
        for _ in range(2):
            hook.before_val_iter(runner)
            self.predict(runner, 3)
            metric.process({}, [{}] * 3)
        self.predict(runner, 3)
        # An exception ends it here; the next one begins as if nothing had been.
        hook.before_val(runner)
        hook.before_val_iter(runner)
        assert n_observers(runner.model) == 1
        self.predict(runner, 2)
        metric.process({}, [{}] * 2)
        hook.after_val_iter(runner)
        assert len(metric.results) == 2

    def test_hook_that_goes_away_within_an_iteration(self, runner, n_observers):
        hook = ImplicitGradientHook()
        hook.before_val_iter(runner, batch_idx=0)
        assert n_observers(runner.model) == 1
        del hook
        gc.collect()
        assert n_observers(runner.model) == 0

    def test_training_of_a_frozen_layer_is_not_measured(
        self, toy_model, make_fake_runner
    ):
        metric = SpectralRadius(num_power_iters=1, krylov_dim=1)
        runner = make_fake_runner(toy_model, val_evaluator=Evaluator(metric))
        hook = MetricObservation()
        hook.before_val_iter(runner)
        hook.after_val_iter(runner)
        toy_model.train()
        toy_model.layer.eval().requires_grad_(False)
        measured = []
        metric.measure = lambda *args: measured.append(args)
        toy_model(torch.rand(2, 4))['loss'].backward()
        assert not measured

    def test_budget_is_the_one_that_was_used(self, runner, metric):
        metric = SolverStatistics(tolerances=(1e-30,))
        runner.val_evaluator = Evaluator(metric)
        hook = MetricObservation()
        hook.before_val_iter(runner)
        with runner.model.layer.using(solver=PicardSolver(max_evals=4)):
            self.predict(runner, 3)
        metric.process({}, [{}] * 3)
        values = metric.evaluate(3)
        assert values['solver/evals'] == values['solver/evals_to_1e-30'] == 4
