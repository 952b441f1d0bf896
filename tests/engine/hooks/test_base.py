import copy
import gc
import weakref

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.deq import PicardSolver
from mdeq_mm.engine.hooks.base import (
    EquilibriumHook,
    ExtraLossHook,
    find_layers,
    weakly,
)

pytestmark = pytest.mark.versions  # hooks of modules are torch's


class Shift(EquilibriumHook):
    """Overrides the budget: for the run and, in an iteration, again."""

    def before_train(self, runner):
        super().before_train(runner)
        for layer in self.layers(runner.model):
            override = layer.using(solver=PicardSolver(max_evals=20))
            self.run_scope.enter_context(override)

    def before_train_iter(self, runner, *args, **kwargs):
        super().before_train_iter(runner, *args, **kwargs)
        for layer in self.layers(runner.model):
            override = layer.using(solver=PicardSolver(max_evals=30))
            self.iteration_scope.enter_context(override)


class PlainLoss(ExtraLossHook):
    """Adds the sum over the passes of the mean square of the state.

    The graph of a square keeps the state.
    """

    loss_name = 'loss_plain'

    def before_train_iter(self, runner, *args, **kwargs):
        super().before_train_iter(runner, *args, **kwargs)
        self.open(runner.model, self.layers(runner.model))

    def observe(self, layer, forward_pass):
        state = forward_pass.state
        return state.square().mean() if state.requires_grad else None

    def loss(self, kept, call):
        return torch.stack(kept).sum()


def budget(model):
    return model.layer.mode.solver.max_evals


class TestEquilibriumHook:
    def test_scopes_end_with_the_iteration_and_the_run(
        self, toy_model, make_fake_runner
    ):
        runner, hook = make_fake_runner(toy_model), Shift()
        budgets = [budget(toy_model)]
        for stage in (
            *('before_run', 'before_train', 'before_train_iter', 'after_train_iter'),
            *('before_train_iter', 'after_train_iter', 'after_train'),
        ):
            getattr(hook, stage)(runner)
            budgets.append(budget(toy_model))
        assert budgets == [6, 6, 20, 30, 20, 30, 20, 6]

    @pytest.mark.parametrize(
        ('stage', 'expected'),
        [
            ('before_train_iter', 30),
            ('before_val_iter', 20),
            ('before_test_iter', 20),
            ('before_train', 20),
            ('before_run', 6),
        ],
    )
    def test_an_exception_is_ended_by_the_next_begin(
        self, toy_model, make_fake_runner, stage, expected
    ):
        runner, hook = make_fake_runner(toy_model), Shift()
        hook.before_train(runner)
        hook.before_train_iter(runner)
        # The iteration raises, so no end is called.
        getattr(hook, stage)(runner)
        assert budget(toy_model) == expected
        hook.after_train(runner)
        assert budget(toy_model) == 6

    def test_observers_of_an_interrupted_iteration(
        self, toy_model, make_fake_runner, n_observers
    ):
        runner, hook = make_fake_runner(toy_model), PlainLoss()
        hook.before_train(runner)
        for _ in range(3):
            hook.before_train_iter(runner)
            assert n_observers(toy_model) == 3
        hook.before_train(runner)
        assert n_observers(toy_model) == 0

    def test_an_exception_is_ended_by_the_garbage_collector(
        self, toy_model, make_fake_runner, n_observers
    ):
        runner = make_fake_runner(toy_model)
        for kind in (Shift, PlainLoss):
            hook = kind()
            hook.before_train(runner)
            hook.before_train_iter(runner)
            assert budget(toy_model) == 30 or n_observers(toy_model) == 3
            del hook
            gc.collect()
            assert budget(toy_model) == 6
            assert n_observers(toy_model) == 0

    def test_model_without_layers(self):
        with pytest.raises(ValueError, match='Nobody needs .* Linear has none'):
            find_layers(nn.Linear(1, 1), 'Nobody')


class TestExtraLossHook:
    def test_loss_is_added_in_iterations_alone(
        self, toy_model, make_fake_runner, n_observers
    ):
        runner, hook, x = make_fake_runner(toy_model), PlainLoss(), torch.rand(2, 4)
        assert set(toy_model(x)) == {'loss'}
        hook.before_train(runner)
        assert set(toy_model(x)) == {'loss'}
        for _ in range(2):
            hook.before_train_iter(runner)
            losses = toy_model(x)
            assert set(losses) == {'loss', 'loss_plain'}
            expected = toy_model(x, mode='tensor').square().mean()
            torch.testing.assert_close(losses['loss_plain'], expected)
            hook.after_train_iter(runner)
        assert n_observers(toy_model) == 0
        assert set(toy_model(x)) == {'loss'}

    def test_a_second_training_registers_once(
        self, toy_model, make_fake_runner, n_observers
    ):
        runner, hook = make_fake_runner(toy_model), PlainLoss()
        counts = []
        for _ in range(2):
            hook.before_train(runner)
            hook.before_train_iter(runner)
            counts.append(n_observers(toy_model))
            hook.after_train_iter(runner)
            hook.after_train(runner)
        assert counts == [3, 3]
        assert n_observers(toy_model) == 0

    @pytest.mark.parametrize('fails', [False, True])
    def test_nothing_piles_up(self, toy_model, make_fake_runner, fails):
        """Passes whose losses nobody asks for are forgotten with their graphs."""
        runner, hook = make_fake_runner(toy_model), PlainLoss()
        states = []
        toy_model.layer.register_pass_hook(
            lambda layer, forward_pass: states.append(weakref.ref(forward_pass.state))
        )

        def fail(module, args, output):
            raise ZeroDivisionError

        hook.before_train_iter(runner)
        for _ in range(3):
            # Outside a call of the model, in a call that predicts or raises, and in
            # one that returns losses.
            toy_model.layer((torch.rand(2, 4, requires_grad=True),))
            toy_model(torch.rand(2, 4), mode='tensor')
            if fails:
                handle = toy_model.layer.register_forward_hook(fail)
                with pytest.raises(ZeroDivisionError):
                    toy_model(torch.rand(2, 4))
                handle.remove()
            losses = toy_model(torch.rand(2, 4))
            del losses
        gc.collect()
        assert len(states) >= 9
        assert not any(state() is not None for state in states)

    def test_calls_within_a_call(self, make_fake_runner, toy_model):
        """Each call of the model is given the passes that it has made itself."""

        class Nested(BaseModel):
            def __init__(self):
                super().__init__()
                self.inner = toy_model
                self.layer = toy_model.layer

            def forward(self, x, depth=1):
                losses = self.inner(x)
                if depth:
                    self(x, depth=depth - 1)
                    losses = self.inner(x)
                return losses

        model = Nested().train()
        runner, hook, x = make_fake_runner(model), PlainLoss(), torch.rand(2, 4)
        hook.before_train_iter(runner)
        losses = model(x)
        expected = 2 * toy_model(x, mode='tensor').square().mean()
        torch.testing.assert_close(losses['loss_plain'], expected)

    def test_copies_of_the_model(self, toy_model, make_fake_runner):
        """A copy that is made within an iteration does not copy the hook."""
        runner, hook = make_fake_runner(toy_model), PlainLoss()
        hook.before_train_iter(runner)
        copied = copy.deepcopy(toy_model)
        (registered,) = copied.layer._pass_hooks.values()
        assert registered in toy_model.layer._pass_hooks.values()


def test_weakly():
    class Counter:
        n = 0

        def count(self, step, factor=1):
            self.n += factor * step
            return self.n

    counter = Counter()
    call = weakly(counter.count)
    assert call(2) == 2
    assert call(1, factor=3) == 5
    reference = weakref.ref(counter)
    del counter
    assert reference() is None
    assert call(2) is None
