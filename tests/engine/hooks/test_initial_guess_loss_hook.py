import pytest
import torch

from mdeq_mm.engine import InitialGuessLossHook
from mdeq_mm.engine.hooks.initial_guess_loss_hook import relative_error

HOOKS = [
    dict(type='ImplicitGradientHook', pretrain_iters=2),
    dict(type='InitialGuessLossHook', weight=0.5),
]


def make_model(**kwargs):
    guess = dict(type='ProjectedGuess')
    return dict(type='Classifier', dropout=0.0, initial_guess=guess, **kwargs)


def history(runner, name):
    return runner.message_hub.get_scalar(f'train/{name}').data[0].tolist()


def test_relative_error():
    guess = torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    state = torch.tensor([[0.0, 4.0], [0.0, 5.0], [1.0, 1.0]])
    assert relative_error(guess, state).item() == pytest.approx((25 / 16 + 1) / 3)


class TestInitialGuessLossHook:
    @pytest.mark.parametrize('unrolled', [False, True])
    def test_loss(self, make_runner, unrolled):
        """Every parameter takes part, the guess through this loss alone."""
        runner = make_runner([], model=make_model())
        hook = InitialGuessLossHook(weight=0.5)
        hook.before_train(runner)
        hook.before_train_iter(runner)
        model = runner.model
        layer = model.backbone.equilibrium
        if unrolled:
            layer.mode = layer.unrolled
        passes = []
        layer.register_pass_hook(lambda _, forward_pass: passes.append(forward_pass))
        images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
        losses = model(images=images, labels=labels, mode='loss')
        (forward_pass,) = passes
        expected = (forward_pass.guess - forward_pass.state).square().sum(1)
        expected = expected / forward_pass.state.square().sum(1)
        torch.testing.assert_close(losses['loss_initial_guess'], 0.5 * expected.mean())

        losses['loss_initial_guess'].backward(retain_graph=True)
        trained = {n for n, p in model.named_parameters() if p.grad is not None}
        guess = {n for n, _ in model.named_parameters() if '.initial_guess.' in n}
        assert trained == guess
        losses['loss'].backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_training(self, make_runner):
        runner = make_runner(
            [
                *HOOKS,
                dict(type='TrajectorySupervisionHook', n_states=2),
                dict(type='JacobianRegularizationHook', weight=0.1),
            ],
            model=make_model(),
            length=4,
        )
        runner.train()
        assert len(history(runner, 'loss_initial_guess')) == 4
        assert len(history(runner, 'loss_trajectory')) == 2
        assert len(history(runner, 'loss_jacobian')) == 2

    def test_guess_gets_better(self, make_runner, calm):
        model = make_model()
        optimizer = dict(type='Adam', lr=0.1)
        runner = make_runner(
            HOOKS, length=15, model=model, optim_wrapper=dict(optimizer=optimizer)
        )
        calm(runner.model)
        # With a fixed cell the equilibria stay where they are.
        runner.model.backbone.equilibrium.cell.requires_grad_(False)
        runner._val_loop = None
        runner.train()
        losses = history(runner, 'loss_initial_guess')
        assert losses[-1] < 0.8 * losses[2], losses

    def test_rest_of_the_model_stays_as_it_is(self, make_runner):
        """Neither a weight nor a statistic moves, and backward solves nothing."""
        runner = make_runner(
            [HOOKS[1] | dict(freeze_rest=True)], model=make_model(), length=4
        )
        layer = runner.model.backbone.equilibrium
        passes, before = [], {}

        def note(_, forward_pass):
            if not passes:  # the runner has initialised the weights by now
                state = runner.model.state_dict()
                before.update((name, value.clone()) for name, value in state.items())
            if torch.is_grad_enabled():
                passes.append(forward_pass)

        layer.register_pass_hook(note)
        trainable = {n for n, p in runner.model.named_parameters() if p.requires_grad}
        runner.train()
        changed = {
            name
            for name, value in runner.model.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert changed
        assert all('.initial_guess.' in name for name in changed)
        assert len(passes) == 4
        assert not any(done.state.requires_grad for done in passes)
        after = {n for n, p in runner.model.named_parameters() if p.requires_grad}
        assert after == trainable

    def test_supervision_lasts_as_long_as_the_training(self, make_runner):
        runner = make_runner([], model=make_model())
        guess = runner.model.backbone.equilibrium.initial_guess.train()
        hook = InitialGuessLossHook()
        hook.before_train(runner)
        # A forward pass between two iterations is allowed.
        guess.check_supervision()
        hook.before_train_iter(runner)
        guess.check_supervision()
        hook.after_train_iter(runner)
        hook.after_train(runner)
        with pytest.raises(RuntimeError, match='InitialGuessLossHook'):
            guess.check_supervision()

    def test_without_the_hook(self, make_runner):
        runner = make_runner(HOOKS[:1], model=make_model())
        with pytest.raises(RuntimeError, match='add .*InitialGuessLossHook'):
            runner.train()

    def test_model_without_a_learned_guess(self, make_runner):
        runner = make_runner(HOOKS)
        with pytest.raises(ValueError, match='needs a model with a learned initial'):
            runner.train()

    def test_frozen_guess_adds_nothing(self, make_runner):
        runner = make_runner(HOOKS[1:], model=make_model(frozen_stages=1), length=2)
        runner.train()
        assert 'train/loss_initial_guess' not in runner.message_hub.log_scalars

    @pytest.mark.parametrize('weight', [0, -1.0])
    def test_wrong_weight(self, weight):
        with pytest.raises(ValueError, match=f'weight must be a positive .* {weight}'):
            InitialGuessLossHook(weight=weight)
