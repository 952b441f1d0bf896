import copy
from threading import Thread

import pytest
import torch
from torch import nn

from mdeq_mm.deq import (
    BroydenSolver,
    EquilibriumLayer,
    ImplicitGradient,
    InitialGuess,
    LearnedGuess,
    PreviousGuess,
    StateLayout,
    ZeroGuess,
)

from .toys import TanhCell


class OnesGuess(InitialGuess):
    def forward(self, injections, layout, dtype):
        return torch.ones(len(injections[0]), layout.numel, dtype=dtype)


@pytest.fixture
def make():
    def make(guess):
        torch.manual_seed(0)
        solver = BroydenSolver(max_evals=40, tol=1e-5)
        gradient = ImplicitGradient(BroydenSolver(max_evals=40, tol=1e-5))
        return EquilibriumLayer(
            TanhCell(), solver, gradient, num_layers=2, initial_guess=guess
        ).eval()

    return make


@pytest.fixture
def layer(make):
    return make(dict(type='PreviousGuess'))


@pytest.fixture
def image():
    return (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)


def evals(layer, image, grad=False):
    with torch.set_grad_enabled(grad):
        return layer(image).forward_pass.solution.n_evals.tolist()


def test_zero_is_the_default(make, image):
    layer = EquilibriumLayer(TanhCell(), BroydenSolver(), ImplicitGradient())
    assert isinstance(layer.initial_guess, ZeroGuess)
    guess = ZeroGuess()(image, StateLayout.of(image), torch.float64)
    assert torch.equal(guess, torch.zeros(2, 48, dtype=torch.float64))


def test_unknown_type(make):
    with pytest.raises(ValueError, match=r"initial_guess: .*'Last'.*PreviousGuess"):
        make(dict(type='Last'))


def test_solve_starts_from_the_guess(make, image):
    seen = []
    layer = make(OnesGuess())
    layer.cell.register_forward_pre_hook(lambda cell, args: seen.append(args[0][0]))
    layer.register_pass_hook(lambda layer, record: seen.append(record.guess))
    evals(layer, image)
    assert (seen[0] == 1).all()
    assert (seen[-1] == 1).all()


def test_unrolled_mode_starts_from_zero(make, image):
    layer = make(OnesGuess())
    seen = []
    layer.cell.register_forward_pre_hook(lambda cell, args: seen.append(args[0][0]))
    with torch.no_grad(), layer.using(mode=layer.unrolled):
        forward_pass = layer(image).forward_pass
    assert (seen[0] == 0).all()
    assert (forward_pass.guess == 1).all()


class TestPreviousGuess:
    def test_same_image_is_found_at_once(self, layer, image):
        assert min(evals(layer, image)) > 4
        assert evals(layer, image) == [1, 1]

    def test_next_frame(self, make, layer, image):
        """Fewer evaluations, the same equilibrium."""
        frame = (image[0] + 1e-3 * torch.randn_like(image[0]),)
        cold = make(ZeroGuess())
        evals(layer, image)
        with torch.no_grad():
            expected, cold_pass = cold(frame)
            actual, warm_pass = layer(frame)
        assert warm_pass.solution.converged.all()
        n_evals = [p.solution.n_evals for p in (cold_pass, warm_pass)]
        assert (2 * n_evals[1] <= n_evals[0] + 1).all()
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-4)

    def test_samples_that_start_converged_leave_the_batch(self, make, layer, image):
        evals(layer, image)
        frame = (image[0].clone(),)
        frame[0][0] += 1
        layer.cell.n_rows.clear()
        with torch.no_grad():
            features, forward_pass = layer(frame)
            expected, _ = make(ZeroGuess())(frame)
        assert layer.cell.n_rows == [2, *[1] * (len(layer.cell.n_rows) - 1)]
        n_evals = forward_pass.solution.n_evals
        assert n_evals[1] == 1 < n_evals[0]
        torch.testing.assert_close(features[0], expected[0], rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        'change',
        [
            lambda x: x[:1],
            lambda x: x[..., :2],
            lambda x: x.transpose(2, 3).reshape(2, 3, 2, 8),
        ],
        ids=['batch size', 'size', 'shape of as many numbers'],
    )
    def test_other_images_start_from_zero(self, make, layer, image, change):
        expected = evals(make(ZeroGuess()), (change(image[0]),))
        evals(layer, image)
        assert evals(layer, (change(image[0]),)) == expected

    def test_other_dtype_starts_from_zero(self, layer, image):
        evals(layer, image)
        layer.double()
        assert min(evals(layer, (image[0].double(),))) > 4

    @pytest.mark.parametrize('training', [True, False], ids=['training', 'frozen'])
    def test_training_starts_from_zero(self, layer, image, training):
        expected = evals(layer, image)
        layer.train(training)
        assert evals(layer, image, grad=True) == expected
        assert evals(layer, image, grad=True) == expected

    def test_training_is_not_remembered(self, layer, image):
        expected = evals(layer, image)
        layer.train()
        evals(layer, image)
        layer.eval()
        assert evals(layer, image) == expected

    def test_reset(self, layer, image):
        expected = evals(layer, image)
        layer.initial_guess.reset()
        assert evals(layer, image) == expected

    def test_features_can_be_changed_in_place(self, layer, image):
        evals(layer, image)
        with torch.no_grad():
            for _ in range(2):
                features, forward_pass = layer(image)
                assert forward_pass.solution.n_evals.tolist() == [1, 1]
                features[0].zero_()

    def test_inference_mode(self, layer, image):
        with torch.inference_mode():
            layer(image)
        with torch.no_grad():
            layer(image).features[0].zero_()
        assert evals(layer, image) == [1, 1]

    def test_is_in_no_checkpoint(self, layer, image):
        evals(layer, image)
        assert set(layer.state_dict()) == {'cell.weight'}

    def test_deepcopy(self, layer, image):
        evals(layer, image)
        twin = copy.deepcopy(layer)
        layer.initial_guess.reset()
        assert evals(twin, image) == [1, 1]
        assert min(evals(layer, image)) > 4

    def test_builds_from_a_class(self, make):
        assert isinstance(make(dict(type=PreviousGuess)).initial_guess, PreviousGuess)

    def test_threads(self, make, layer, eager_threads):
        """Images of other sizes, solved at the same time, disturb nothing."""
        images = [torch.randn(size, 3, 4, size) for size in (1, 2, 3, 4)]
        with torch.no_grad():
            expected = [make(ZeroGuess())((x,)).features[0] for x in images]
        results, errors = {}, []

        def predict(number):
            try:
                with torch.no_grad():
                    results[number] = [
                        layer((images[number],)).features[0] for _ in range(50)
                    ]
            except Exception as error:  # noqa: BLE001  the test shows it
                errors.append(error)

        threads = [Thread(target=predict, args=(k,)) for k in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        for number, features in results.items():
            for feature in features:
                torch.testing.assert_close(feature, expected[number], rtol=0, atol=1e-4)


class BiasGuess(LearnedGuess):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.5))

    def forward(self, injections, layout, dtype):
        self.check_supervision()
        return self.bias.expand(len(injections[0]), layout.numel).to(dtype)


class TestLearnedGuess:
    @pytest.fixture
    def layer(self, make):
        return make(BiasGuess()).train()

    @pytest.mark.parametrize('unrolled', [False, True])
    def test_nothing_trains_it(self, layer, image, unrolled):
        if unrolled:
            layer.mode = layer.unrolled
        with pytest.raises(RuntimeError, match='BiasGuess: add .*InitialGuessLossHook'):
            layer(image)
        with torch.no_grad():
            layer(image)
        layer.eval()(image)
        layer.train()
        layer.initial_guess.requires_grad_(False)
        layer(image)

    def test_supervision(self, layer, image):
        guess = layer.initial_guess
        with guess.supervision():
            layer(image)
        with pytest.raises(KeyError), guess.supervision(), guess.supervision():
            raise KeyError
        with pytest.raises(RuntimeError, match='nothing trains'):
            layer(image)

    def test_two_supervisors_that_end_in_the_order_they_began(self, layer, image):
        first, second = (layer.initial_guess.supervision() for _ in range(2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        layer(image)
        second.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match='nothing trains'):
            layer(image)

    def test_its_own_loss_alone_reaches_it(self, layer, image):
        with layer.initial_guess.supervision():
            features, forward_pass = layer(image)
        features[0].sum().backward()
        assert layer.initial_guess.bias.grad is None
        assert layer.cell.weight.grad is not None
        layer.zero_grad()
        forward_pass.guess.sum().backward()
        assert layer.initial_guess.bias.grad == 2 * 48
        assert layer.cell.weight.grad is None
