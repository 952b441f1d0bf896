"""What holds for gradients of any sizes and scales, against linear algebra."""

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Cell,
    EquilibriumLayer,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
)

from ...properties import BATCH_SIZES, SCALES, SEEDS, generator_of, holds

LIPSCHITZ = 0.6
TOL = {torch.float32: 1e-5, torch.float64: 1e-11}
SOLVERS = {
    'picard': PicardSolver,
    'anderson': AndersonSolver,
    'broyden': BroydenSolver,
}


class AffineCell(Cell):
    """``A z + x`` or ``tanh(A z) + x`` of two maps, which are one vector together."""

    def __init__(self, matrix, sizes, tanh):
        super().__init__()
        self.matrix = nn.Parameter(matrix)
        self.sizes = sizes
        self.tanh = tanh

    def forward(self, states, injections):
        # A sum of products for each entry, in one order whatever the batch.
        z = torch.cat(tuple(states), 1).unsqueeze(1)
        product = (z * self.matrix).sum(2)
        product = torch.tanh(product) if self.tanh else product
        parts = product.split(self.sizes, 1)
        return tuple(part + x for part, x in zip(parts, injections))


class Problem:
    """A layer, its injections, and the gradients that arrive at its features."""

    def __init__(self, batch_size, sizes, dtype, tanh, seed, scales):
        generator = generator_of(seed)
        size = sum(sizes)
        matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
        matrix = LIPSCHITZ * matrix / torch.linalg.matrix_norm(matrix, 2)
        self.dtype, self.sizes = dtype, sizes
        self.cell = AffineCell(matrix.to(dtype), sizes, tanh)
        draw = torch.randn(2, batch_size, size, generator=generator).to(dtype)
        self.x = draw[0].requires_grad_()
        scales = torch.tensor(scales[:batch_size], dtype=torch.float64)
        self.scales = scales.reshape(-1, 1)
        self.weight = (draw[1] * self.scales).to(dtype)

    def differentiate(self, gradient, weight=None):
        """Returns the state, and the gradients of matrix and injection."""
        solver = BroydenSolver(200, TOL[self.dtype], 'abs')
        layer = EquilibriumLayer(self.cell, solver, gradient)
        features, forward_pass = layer(self.x.split(self.sizes, 1))
        state = torch.cat(features, 1)
        weight = self.weight if weight is None else weight
        leaves = self.cell.matrix, self.x
        return forward_pass, *grad(state, leaves, weight, allow_unused=True)

    def jacobian(self, z):
        """Jacobian of ``f`` at states ``(B, N)``, as ``(B, N, N)``, float64."""
        matrix = self.cell.matrix.detach().double()
        if not self.cell.tanh:
            return matrix.expand(len(z), *matrix.shape)
        slope = 1 - torch.tanh(z @ matrix.T) ** 2
        return slope.unsqueeze(2) * matrix

    def slope(self, z):
        if not self.cell.tanh:
            return torch.ones_like(z)
        return 1 - torch.tanh(z @ self.cell.matrix.detach().double().T) ** 2


PROBLEM = dict(
    batch_size=BATCH_SIZES,
    sizes=st.sampled_from([(1, 1), (1, 3), (4, 2), (9, 8)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    tanh=st.booleans(),
    seed=SEEDS,
    scales=st.lists(SCALES, min_size=5, max_size=5),
)
PROBLEMS = st.builds(Problem, **PROBLEM)
EVEN_PROBLEMS = st.builds(Problem, **{**PROBLEM, 'scales': st.just([1.0] * 5)})


@pytest.fixture(params=SOLVERS)
def solver_of(request):
    """Makes the solver of the adjoint system."""
    return lambda dtype: SOLVERS[request.param](200, TOL[dtype], 'abs')


def implicit_oracle(problem, z, weight):
    """Solves ``y = J^T y + weight`` in float64."""
    system = torch.eye(z.shape[1], dtype=torch.float64) - problem.jacobian(z).mT
    return torch.linalg.solve(system, weight.double().unsqueeze(2)).squeeze(2)


def matrix_gradient(problem, z, y):
    """Gradient of the matrix where ``y`` arrives at ``f(z)``."""
    return torch.einsum('bi,bj->ij', y * problem.slope(z), z)


@holds(15, problem=PROBLEMS)
def test_implicit(solver_of, problem):
    """Each sample's is within tol / (1 - lipschitz) of the solution, at its scale."""
    gradient = ImplicitGradient(solver_of(problem.dtype))
    forward_pass, _, found = problem.differentiate(gradient)
    z = forward_pass.solution.state.double()
    expected = implicit_oracle(problem, z, problem.weight)
    assert found.shape == problem.x.shape
    assert found.dtype == problem.dtype
    norm = problem.weight.double().norm(dim=1)
    tol, eps = TOL[problem.dtype], torch.finfo(problem.dtype).eps
    bound = (tol + 4 * (z.shape[1] + 2) * eps) / (1 - LIPSCHITZ) * norm
    assert ((found.double() - expected).norm(dim=1) <= bound).all()


@holds(15, problem=EVEN_PROBLEMS)
def test_implicit_gradient_of_a_parameter(solver_of, problem):
    gradient = ImplicitGradient(solver_of(problem.dtype))
    forward_pass, found, _ = problem.differentiate(gradient)
    z = forward_pass.solution.state.double()
    expected = matrix_gradient(problem, z, implicit_oracle(problem, z, problem.weight))
    norm = (problem.weight.double().norm(dim=1) * z.norm(dim=1)).sum()
    tol, eps = TOL[problem.dtype], torch.finfo(problem.dtype).eps
    bound = (tol + 4 * (z.shape[1] + 7) * eps) / (1 - LIPSCHITZ) * norm
    assert (found.double() - expected).norm() <= bound


@holds(
    40,
    problem=EVEN_PROBLEMS,
    steps=st.integers(1, 6),
    damping=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_phantom(problem, steps, damping):
    """It is the derivative of the damped steps, by hand."""
    forward_pass, of_matrix, of_x = problem.differentiate(
        PhantomGradient(steps, damping)
    )
    matrix, x = problem.cell.matrix.detach().double(), problem.x.detach().double()
    states = [forward_pass.solution.state.double()]
    for _ in range(steps):
        product = states[-1] @ matrix.T
        fz = (torch.tanh(product) if problem.cell.tanh else product) + x
        states.append(states[-1] + damping * (fz - states[-1]))
    y = problem.weight.double()
    expected_matrix, expected_x = torch.zeros_like(matrix), torch.zeros_like(x)
    for z in reversed(states[:-1]):
        expected_matrix += damping * matrix_gradient(problem, z, y)
        expected_x += damping * y
        pulled = (problem.jacobian(z).mT @ y.unsqueeze(2)).squeeze(2)
        y = (1 - damping) * y + damping * pulled
    eps = torch.finfo(problem.dtype).eps
    size = 30 * steps * (x.shape[1] + 7) * eps
    norm = problem.weight.double().norm(dim=1)
    assert ((of_x.double() - expected_x).norm(dim=1) <= size * norm).all()
    largest = sum(z.norm(dim=1) for z in states) / (1 - LIPSCHITZ)
    assert (of_matrix.double() - expected_matrix).norm() <= size * (norm @ largest)


@holds(
    12,
    problem=PROBLEMS,
    bad=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    sample=st.integers(0, 4),
    entry=st.integers(0, 16),
    gradient=st.sampled_from(['implicit', 'phantom']),
)
def test_bad_sample(solver_of, problem, bad, sample, entry, gradient):
    """The others' are to the bit what they are without it, and it shows."""
    if gradient == 'implicit':
        gradient = ImplicitGradient(solver_of(problem.dtype))
    else:
        gradient = PhantomGradient(3)
    _, _, expected = problem.differentiate(gradient)
    rows = torch.arange(len(problem.x))
    weight = problem.weight.clone()
    weight[rows == sample, entry % weight.shape[1]] = bad
    _, _, found = problem.differentiate(gradient, weight)
    assert torch.equal(found[rows != sample], expected[rows != sample])
    assert not found[rows == sample].isfinite().all(dim=1).any()


@holds(12, problem=PROBLEMS, exponent=st.integers(-20, 20))
def test_scale_changes_nothing_else(solver_of, problem, exponent):
    """Loss scaling by a power of two scales the gradient, to the bit."""
    problem.weight = problem.weight / problem.scales.to(problem.dtype)
    gradient = ImplicitGradient(solver_of(problem.dtype))
    _, of_matrix, of_x = problem.differentiate(gradient)
    scale = 2.0**exponent
    _, scaled_matrix, scaled_x = problem.differentiate(gradient, problem.weight * scale)
    assert torch.equal(scaled_x, of_x * scale)
    assert torch.equal(scaled_matrix, of_matrix * scale)


@holds(10, problem=PROBLEMS, sample=st.integers(0, 4))
def test_gradient_of_zero(solver_of, problem, sample):
    """A sample that the loss does not see gets zero, and costs the others nothing."""
    gradient = ImplicitGradient(solver_of(problem.dtype))
    _, _, expected = problem.differentiate(gradient)
    rows = torch.arange(len(problem.x))
    weight = problem.weight.clone()
    weight[rows == sample] = 0
    _, _, found = problem.differentiate(gradient, weight)
    assert torch.equal(found[rows != sample], expected[rows != sample])
    assert not found[rows == sample].any()
