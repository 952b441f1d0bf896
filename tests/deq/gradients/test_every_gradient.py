"""What every gradient promises. A new one is one line in the table."""

import copy
import gc
import weakref
from threading import Thread

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck
from torch.func import functional_call

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Cell,
    EquilibriumGradient,
    EquilibriumLayer,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    Unrolled,
)
from mdeq_mm.deq.builder import build

from .example_gradient import NeumannGradient

EXACT = 1e-6
# It differentiates steps of its own from a solution that it takes for a constant.
OWN_STEPS = None
BROYDEN, PICARD = BroydenSolver(100, 1e-11), PicardSolver(100, 1e-11)
ANDERSON = AndersonSolver(100, 1e-11, ridge=1e-12)
SHINE = dict(type='InverseJacobianGuess')

# The gradient, and its largest relative error against the unrolled iteration.
GRADIENTS = {
    'implicit-picard': (ImplicitGradient(PICARD), EXACT),
    'implicit-anderson': (ImplicitGradient(ANDERSON), EXACT),
    'implicit-broyden': (ImplicitGradient(BROYDEN), EXACT),
    'implicit-none': (ImplicitGradient(None), OWN_STEPS),
    'shine-refined': (ImplicitGradient(BROYDEN, SHINE), EXACT),
    'shine-none': (ImplicitGradient(None, SHINE), 0.5),
    'phantom': (PhantomGradient(5, 0.7), OWN_STEPS),
    'phantom-one-step': (PhantomGradient(1, 1.0), OWN_STEPS),
    'phantom-many-steps': (PhantomGradient(40, 0.9), EXACT),
    'neumann': (NeumannGradient(40), EXACT),
}


class MixingCell(Cell):
    """``tanh(A z) + x``, a contraction."""

    def __init__(self, dim=3):
        super().__init__()
        matrix = torch.randn(dim, dim)
        matrix = 0.6 * matrix / torch.linalg.matrix_norm(matrix, 2)
        self.matrix = nn.Parameter(matrix)

    def forward(self, states, injections):
        z = nn.functional.linear(states[0], self.matrix)
        return (torch.tanh(z) + injections[0],)


@pytest.fixture(params=GRADIENTS)
def case(request):
    return GRADIENTS[request.param]


@pytest.fixture
def layer(case):
    return EquilibriumLayer(MixingCell(), BroydenSolver(100, 1e-12), case[0]).double()


@pytest.fixture
def x():
    return torch.randn(3, 3, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def weight():
    return torch.randn(3, 3, dtype=torch.float64)


def loss_of(layer, x, weight):
    return (layer((x,)).features[0] * weight).sin().sum()


def leaves(layer, x):
    return [layer.cell.matrix, x]


def relative_errors(actual, expected):
    return [((a - e).norm() / e.norm()).item() for a, e in zip(actual, expected)]


class TestValues:
    def test_against_the_unrolled_iteration(self, case, layer, x, weight):
        error = case[1]
        actual = grad(loss_of(layer, x, weight), leaves(layer, x))
        with layer.using(mode=Unrolled(60)):
            expected = grad(loss_of(layer, x, weight), leaves(layer, x))
        if error is OWN_STEPS:
            # It points to where the gradient points, and is not the gradient.
            for a, e in zip(actual, expected):
                assert nn.functional.cosine_similarity(a.flatten(), e.flatten(), 0) > 0
        else:
            assert max(relative_errors(actual, expected)) <= error

    @pytest.mark.parametrize(
        'case',
        [name for name, (_, error) in GRADIENTS.items() if error in (EXACT, OWN_STEPS)],
        indirect=True,
    )
    def test_gradcheck(self, case, layer, x):
        solver, guess = layer.configured.solver, layer.initial_guess
        if case[1] is OWN_STEPS:
            solver, guess = PicardSolver(1, 0.0), self.solution(layer, x[:2])

        def equilibrium(matrix, x):
            with layer.using(solver=solver, initial_guess=guess):
                output = functional_call(layer, {'cell.matrix': matrix}, ((x,),))
            return output.features[0]

        matrix = layer.cell.matrix.detach().requires_grad_()
        x = x[:2].detach().requires_grad_()
        assert gradcheck(equilibrium, (matrix, x), check_undefined_grad=False)

    @staticmethod
    def solution(layer, x):
        """A guess from which a solve of one evaluation returns the solution."""
        solution = layer((x,)).forward_pass.solution.state

        class Solved(type(layer.initial_guess)):
            def forward(self, injections, layout, dtype):
                return solution

        return Solved()

    def test_value_is_the_equilibrium(self, layer, x):
        features, forward_pass = layer((x,))
        torch.testing.assert_close(features[0], forward_pass.solution.state)
        with torch.no_grad():
            torch.testing.assert_close(features[0], layer((x,)).features[0])


class TestPasses:
    """Nothing of a pass stays on the gradient or on the layer."""

    def test_two_forwards_before_one_backward(self, layer, x, weight):
        weights = [weight, weight.flip(0)]
        separate = [grad(loss_of(layer, x, w), leaves(layer, x)) for w in weights]
        first, second = (loss_of(layer, x, w) for w in weights)
        for a, b, together in zip(*separate, grad(first + second, leaves(layer, x))):
            torch.testing.assert_close(together, a + b)

    @pytest.mark.parametrize('order', [(0, 1), (1, 0)])
    def test_two_forwards_and_two_backwards(self, layer, x, weight, order):
        inputs = [x, 2 * x.detach()]
        separate = [grad(loss_of(layer, y, weight), layer.cell.matrix) for y in inputs]
        losses = [loss_of(layer, y, weight) for y in inputs]
        for number in order:
            actual = grad(losses[number], layer.cell.matrix)
            assert torch.equal(actual[0], separate[number][0])

    def test_backward_twice(self, layer, x, weight):
        loss = loss_of(layer, x, weight)
        first = grad(loss, leaves(layer, x), retain_graph=True)
        for a, b in zip(first, grad(loss, leaves(layer, x))):
            assert torch.equal(a, b)

    def test_backward_after_the_layer_was_used_otherwise(self, layer, x, weight):
        expected = grad(loss_of(layer, x, weight), layer.cell.matrix)[0]
        loss = loss_of(layer, x, weight)
        with torch.no_grad(), layer.using(solver=PicardSolver(1)):
            layer.eval()((x[:1],))
        layer.mode = layer.unrolled
        assert torch.equal(grad(loss, layer.cell.matrix)[0], expected)

    def test_deepcopy_between_forward_and_backward(self, layer, x, weight):
        loss = loss_of(layer, x, weight)
        twin = copy.deepcopy(layer)
        loss.backward()
        assert layer.cell.matrix.grad is not None
        assert twin.cell.matrix.grad is None
        loss_of(twin, x, weight).backward()
        assert torch.equal(twin.cell.matrix.grad, layer.cell.matrix.grad)

    def test_one_gradient_in_two_layers(self, case, layer, x, weight):
        other = EquilibriumLayer(MixingCell(), layer.configured.solver, case[0])
        other.double()
        expected = [grad(loss_of(m, x, weight), m.cell.matrix) for m in (layer, other)]
        losses = [loss_of(m, x, weight) for m in (layer, other)]
        (first,) = grad(losses[0], layer.cell.matrix)
        (second,) = grad(losses[1], other.cell.matrix)
        assert torch.equal(first, expected[0][0])
        assert torch.equal(second, expected[1][0])

    def test_threads(self, layer, weight, eager_threads):
        inputs = [torch.randn(size, 3, dtype=torch.float64) for size in (1, 2, 3, 3)]

        def differentiate(y):
            return grad(loss_of(layer, y, weight[: len(y)]), layer.cell.matrix)[0]

        expected = [differentiate(y) for y in inputs]
        results = {}

        def run(number):
            results[number] = [differentiate(inputs[number]) for _ in range(3)]

        threads = [Thread(target=run, args=(n,)) for n in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [0, 1, 2, 3]
        for number, actual in results.items():
            assert all(torch.equal(a, expected[number]) for a in actual)

    def test_backward_in_another_thread(self, layer, x, weight):
        (expected,) = grad(loss_of(layer, x, weight), layer.cell.matrix)
        loss, results = loss_of(layer, x, weight), []
        thread = Thread(target=lambda: results.extend(grad(loss, layer.cell.matrix)))
        thread.start()
        thread.join()
        assert torch.equal(results[0], expected)


@pytest.mark.versions
class TestAutocast:
    @pytest.mark.parametrize('backward', ['inside', 'outside'])
    def test_dtypes_and_values(self, layer, x, weight, backward):
        layer.float()
        x, weight = x.detach().float().requires_grad_(), weight.float()

        def differentiate(enabled):
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                features, _ = layer((x,))
                loss = (features[0] * weight).sum()
                if backward == 'inside':
                    return features[0], *grad(loss, leaves(layer, x))
            return features[0], *grad(loss, leaves(layer, x))

        with layer.using(solver=BroydenSolver(10, 1e-2)):
            expected, actual = differentiate(False), differentiate(True)
        assert {value.dtype for value in actual} == {torch.float32}
        assert max(relative_errors(actual, expected)) <= 0.05


class Saved:
    """What autograd saves for backward, so that one can see when it is let go."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


class TestNothingOutlivesTheGraph:
    """No reference cycle: the graph goes with its last user, backward or not."""

    @pytest.mark.parametrize('run_backward', [True, False])
    def test_no_cycle(self, layer, x, weight, run_backward):
        alive, evals = [], []

        def pack(tensor):
            saved = Saved(tensor)
            alive.append(weakref.ref(saved))
            return saved

        gc.collect()
        gc.disable()
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda s: s.tensor):
                features, forward_pass = layer((x,))
                forward_pass.register_adjoint_hook(lambda s: evals.append(s.n_evals))
                loss = (features[0] * weight).sum()
            alive += [weakref.ref(forward_pass), weakref.ref(forward_pass.f)]
            if run_backward:
                loss.backward(retain_graph=True)
                assert len(evals) == (forward_pass.adjoint is not None)
            assert len(alive) > 2
            assert all(reference() is not None for reference in alive)
            del features, forward_pass, loss
            assert all(reference() is None for reference in alive)
        finally:
            gc.enable()

    def test_the_pass_can_go_before_backward(self, layer, x, weight):
        """Whoever looks at passes need not keep them for their adjoint hooks."""
        evals = []
        layer.register_pass_hook(
            lambda layer, forward_pass: forward_pass.register_adjoint_hook(
                lambda adjoint: evals.append(adjoint.n_evals)
            )
        )
        features, forward_pass = layer((x,))
        alive = weakref.ref(forward_pass)
        del forward_pass
        assert alive() is None
        (features[0] * weight).sum().backward()
        solves = getattr(layer.configured.gradient, 'solver', None) is not None
        assert len(evals) == solves


class TestSamples:
    def test_they_do_not_mix(self, layer, x, weight):
        (together,) = grad(loss_of(layer, x, weight), x)
        for row in range(len(x)):
            y = x[row : row + 1].detach().requires_grad_()
            (alone,) = grad(loss_of(layer, y, weight[row : row + 1]), y)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-6)

    def test_gradient_that_is_not_finite(self, layer, x, weight):
        """It reaches the parameters, where a gradient scaler looks for it."""
        weight[1, 2] = torch.inf
        (result,) = grad((layer((x,)).features[0] * weight).sum(), layer.cell.matrix)
        assert not result.isfinite().all()


def test_example_from_a_config():
    gradient = build(dict(type='NeumannGradient', terms=3), EquilibriumGradient, 'g')
    assert isinstance(gradient, NeumannGradient)
    assert gradient.terms == 3
