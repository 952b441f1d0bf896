import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mdeq_mm.deq import (
    BroydenSolver,
    EquilibriumLayer,
    ImplicitGradient,
    InitialGuess,
    PreviousGuess,
    StateLayout,
    ZeroGuess,
)


class TanhCell(nn.Module):
    """A contraction that takes Broyden's method several evaluations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.15 * torch.randn(3, 3))
        self.n_rows = []

    @contextmanager
    def freeze(self, injections):
        yield

    def forward(self, states, injections):
        self.n_rows.append(len(states[0]))
        z, x = states[0], injections[0]
        return (torch.tanh(torch.einsum('ij,bjhw->bihw', self.weight, z) + x),)


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
        return layer(image)[1].n_evals.tolist()


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
    layer.register_solve_hook(lambda layer, solve: seen.append(solve.guess))
    evals(layer, image)
    assert (seen[0] == 1).all()
    assert (seen[-1] == 1).all()


def test_shallow_starts_from_zero(make, image):
    expected = make(ZeroGuess())
    layer = make(OnesGuess())
    layer.shallow = expected.shallow = True
    with torch.no_grad():
        assert torch.equal(layer(image)[0][0], expected(image)[0][0])


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
            expected, cold_solution = cold(frame)
            actual, warm_solution = layer(frame)
        assert warm_solution.converged.all()
        assert (2 * warm_solution.n_evals <= cold_solution.n_evals + 1).all()
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-4)

    def test_samples_that_start_converged_leave_the_batch(self, make, layer, image):
        evals(layer, image)
        frame = (image[0].clone(),)
        frame[0][0] += 1
        layer.cell.n_rows.clear()
        with torch.no_grad():
            features, solution = layer(frame)
            expected, _ = make(ZeroGuess())(frame)
        assert layer.cell.n_rows == [2, *[1] * (len(layer.cell.n_rows) - 1)]
        assert solution.n_evals[1] == 1 < solution.n_evals[0]
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
                features, solution = layer(image)
                assert solution.n_evals.tolist() == [1, 1]
                features[0].zero_()

    def test_inference_mode(self, layer, image):
        with torch.inference_mode():
            layer(image)
        with torch.no_grad():
            layer(image)[0][0].zero_()
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
