import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mdeq_mm.deq import (
    BroydenSolver,
    EquilibriumLayer,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    UnrolledGradient,
)

INJECTIONS = (torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2))


class LinearCell(nn.Module):
    """A contraction on two feature maps that do not even talk to each other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.5]))
        self.n_calls = 0
        self.frozen = False

    @contextmanager
    def freeze(self, injections):
        self.frozen = True
        yield
        self.frozen = False

    def forward(self, states, injections):
        assert self.frozen
        self.n_calls += 1
        return tuple(
            weight * z + x for weight, z, x in zip(self.weight, states, injections)
        )


@pytest.fixture
def layer():
    return EquilibriumLayer(
        LinearCell(),
        BroydenSolver(max_evals=30, tol=1e-6),
        ImplicitGradient(BroydenSolver(max_evals=30, tol=1e-6)),
        num_layers=3,
    )


class TestEquilibriumLayer:
    def test_equilibrium(self, layer):
        features, solution = layer(INJECTIONS)
        for feature, x, weight in zip(features, INJECTIONS, (0.5, -0.5)):
            torch.testing.assert_close(feature, x / (1 - weight), rtol=1e-4, atol=1e-4)
        assert solution.converged.all()

    def test_gradient(self, layer):
        features, solution = layer(INJECTIONS)
        sum(feature.sum() for feature in features).backward()
        expected = [x.sum() / (1 - w) ** 2 for x, w in zip(INJECTIONS, (0.5, -0.5))]
        torch.testing.assert_close(
            layer.cell.weight.grad, torch.stack(expected), rtol=1e-4, atol=1e-4
        )
        assert solution.adjoint.converged.all()

    def test_without_gradient_the_state_is_the_solvers(self, layer):
        with torch.no_grad():
            features, solution = layer(INJECTIONS)
        assert torch.equal(
            torch.cat([z.flatten(1) for z in features], 1), solution.state
        )
        assert layer.cell.n_calls == solution.n_evals.max()

    def test_frozen_cell_is_not_evaluated_once_more(self, layer):
        layer.requires_grad_(False)
        _, solution = layer(INJECTIONS)
        assert layer.cell.n_calls == solution.n_evals.max()

    def test_gradient_of_the_injection_alone(self, layer):
        layer.requires_grad_(False)
        x = [injection.clone().requires_grad_() for injection in INJECTIONS]
        features, _ = layer(x)
        features[0].sum().backward()
        torch.testing.assert_close(x[0].grad, torch.full_like(x[0], 2.0))

    @pytest.mark.parametrize('mode', ['train', 'eval', 'no_grad'])
    def test_shallow(self, layer, mode):
        layer.shallow = True
        layer.train(mode == 'train')
        with torch.set_grad_enabled(mode != 'no_grad'):
            features, solution = layer(INJECTIONS)
        assert solution is None
        assert layer.cell.n_calls == 3
        for feature, x, w in zip(features, INJECTIONS, (0.5, -0.5)):
            torch.testing.assert_close(feature, x * (1 + w + w * w))
        assert features[0].requires_grad == (mode != 'no_grad')

    def test_unrolled_gradient_needs_no_solve_in_training(self, layer):
        layer.gradient = UnrolledGradient(4)
        _, solution = layer(INJECTIONS)
        assert solution is None
        assert layer.cell.n_calls == 4
        with torch.no_grad():
            _, solution = layer(INJECTIONS)
        assert solution.converged.all()

    def test_history_is_not_kept(self, layer):
        _, solution = layer(INJECTIONS)
        assert solution.inverse_jacobian is None

    def test_converged_samples_leave_the_batch(self, layer):
        """In inference; the expanded zeros of coarse branches are not written out."""
        injections = (torch.randn(4, 3, 4, 4), torch.zeros(()).expand(4, 5, 2, 2))
        injections[0][1] = 0
        rows, strides = [], []

        def note(cell, args):
            rows.append(len(args[0][0]))
            strides.append(args[1][1].stride(0))

        layer.cell.register_forward_pre_hook(note)
        with torch.no_grad():
            features, solution = layer.eval()(injections)
        assert rows == [4, *[3] * (len(rows) - 1)]
        assert set(strides) == {0}
        assert solution.n_evals[1] == 1
        torch.testing.assert_close(features[0], 2 * injections[0], rtol=1e-4, atol=1e-4)
        rows.clear()
        layer.train()(injections)
        assert set(rows) == {4}

    def test_adjoint_from_the_inverse_of_the_forward_solve(self, layer):
        gradients = []
        for init in ImplicitGradient.INITS:
            layer.gradient = ImplicitGradient(BroydenSolver(30, tol=1e-6), init=init)
            features, solution = layer(INJECTIONS)
            assert solution.inverse_jacobian is None
            loss = sum(feature.sum() for feature in features)
            gradients.append(torch.autograd.grad(loss, layer.cell.weight)[0])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)

    def test_hook_sees_the_solution(self, layer):
        seen = []
        layer.register_forward_hook(lambda module, args, output: seen.append(output[1]))
        features, _ = layer(INJECTIONS)
        features[0].sum().backward()
        assert seen[0].adjoint.converged.all()

    @pytest.mark.parametrize('shallow', [False, True])
    @pytest.mark.parametrize('differentiate', [False, True])
    def test_solve_hook(self, layer, shallow, differentiate):
        seen = []

        def hook(hooked, solve):
            assert hooked is layer
            assert layer.cell.frozen
            z, fz = solve.linearize()
            assert z.is_leaf
            (product,) = torch.autograd.grad(fz, z, torch.ones_like(z))
            seen.append((solve, z, product))

        layer.shallow = shallow
        handle = layer.register_solve_hook(hook)
        with torch.set_grad_enabled(differentiate):
            features, solution = layer(INJECTIONS)
        ((solve, _z, product),) = seen
        assert solve.solution is solution
        for actual, expected in zip(solve.layout.unpack(solve.state), features):
            assert torch.equal(actual, expected)
        # The Jacobian of the cell is diagonal, with its two weights.
        slopes = product.unique()
        torch.testing.assert_close(slopes, torch.tensor([-0.5, 0.5]))
        handle.remove()
        layer(INJECTIONS)
        assert len(seen) == 1

    def test_linearization_costs_no_evaluation_with_the_implicit_gradient(self, layer):
        layer(INJECTIONS)
        n_calls, layer.cell.n_calls = layer.cell.n_calls, 0
        layer.register_solve_hook(lambda layer, solve: solve.linearize())
        layer(INJECTIONS)
        assert layer.cell.n_calls == n_calls

    def test_iterates_are_kept_in_training(self, layer):
        layer.keep = (2,)
        assert set(layer(INJECTIONS)[1].iterates) == {2}
        assert layer.eval()(INJECTIONS)[1].iterates == {}

    def test_deepcopy_between_forward_and_backward(self, layer):
        features, _ = layer(INJECTIONS)
        twin = copy.deepcopy(layer)
        features[0].sum().backward()
        assert layer.cell.weight.grad is not None
        assert twin.cell.weight.grad is None
        twin(INJECTIONS)[0][0].sum().backward()
        torch.testing.assert_close(twin.cell.weight.grad, layer.cell.weight.grad)

    @pytest.mark.parametrize(
        'gradient', [ImplicitGradient(PicardSolver(5)), PhantomGradient(2)]
    )
    def test_saved_bytes_do_not_depend_on_the_budget(self, gradient, saved_bytes):
        totals = set()
        for max_evals in (5, 50, 500):
            layer = EquilibriumLayer(
                LinearCell(), PicardSolver(max_evals, 0.0), gradient
            )
            with saved_bytes() as saved:
                layer(INJECTIONS)
            totals.add(saved.total)
        assert len(totals) == 1
        assert totals.pop() > 0

    def test_state_dict_is_the_cells(self, layer):
        assert list(layer.state_dict()) == ['cell.weight']

    def test_wrong_solver(self):
        with pytest.raises(ValueError, match="forward_solver: unknown.*'Newton'"):
            EquilibriumLayer(LinearCell(), dict(type='Newton'), ImplicitGradient())
        with pytest.raises(ValueError, match="gradient: unknown.*'BroydenSolver'"):
            EquilibriumLayer(LinearCell(), BroydenSolver(), dict(type='BroydenSolver'))
