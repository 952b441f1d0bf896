"""Backbones whose solves begin in bfloat16."""

import pytest
import torch

from mdeq_mm.benchmark import count_work
from mdeq_mm.deq import AndersonSolver, ImplicitGradient
from mdeq_mm.models import MDEQ, DEQViT

SOLVER = AndersonSolver(max_evals=60, tol=1e-5)
BACKBONES = {
    MDEQ: dict(arch=dict(channels=(8, 16), num_groups=4, expansion=2)),
    DEQViT: dict(
        arch=dict(embed_dims=8, num_heads=2, feedforward_channels=16),
        img_size=16,
        patch_size=4,
    ),
}


@pytest.fixture(params=BACKBONES, ids=lambda kind: kind.__name__)
def make(request, calm):
    """Makes a model in evaluation mode, the same one each time."""

    def build(evaluation_dtype, solver=SOLVER, **kwargs):
        torch.manual_seed(0)
        kwargs = {**BACKBONES[request.param], **kwargs}
        model = request.param(
            forward_solver=solver,
            gradient=ImplicitGradient(solver),
            evaluation_dtype=evaluation_dtype,
            **kwargs,
        )
        return calm(model).eval()

    return build


def outputs_and_gradients(model, x):
    outputs = model(x)
    # The mean of a norm says nothing: a fixed direction.
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(out.shape, generator=generator) for out in outputs]
    torch.autograd.backward(outputs, directions)
    return outputs, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize('size', [(16, 24), (17, 29)])
def test_outputs_and_gradients_are_those_of_float32(make, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    passes, results = [], []
    for dtype in ('bfloat16', None):
        model = make(dtype)
        with model.equilibrium.register_pass_hook(lambda _, done: passes.append(done)):
            results.append(outputs_and_gradients(model, x))
    mixed = passes[0]
    assert mixed.solution.converged.all()
    assert (mixed.solution.n_reduced > 0).all()
    assert mixed.adjoint.converged.all()
    (outputs, grads), (expected, expected_grads) = results
    for found, wanted in zip(outputs, expected):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    total = torch.cat([grad.flatten() for grad in expected_grads]).norm()
    for found, wanted in zip(grads, expected_grads):
        assert (found - wanted).norm() <= 1e-3 * total


def test_work_of_a_training_step(make):
    """A loose tolerance: bfloat16 alone, and two evaluations that autograd records."""
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    loose = AndersonSolver(max_evals=60, tol=0.25)
    model = make('bfloat16', loose)
    passes = []
    model.equilibrium.register_pass_hook(lambda _, done: passes.append(done))
    with count_work(model.equilibrium) as work:
        outputs_and_gradients(model, x)
    solution, adjoint = passes[0].solution, passes[0].adjoint
    assert torch.equal(solution.n_reduced, solution.n_evals)
    assert torch.equal(adjoint.n_reduced, adjoint.n_evals)
    assert work.evaluations == solution.n_evals.max() + 2
    assert work.products == adjoint.n_evals.max()


def test_deployed_model(calm):
    torch.manual_seed(0)
    arch = BACKBONES[MDEQ]['arch']
    model = calm(MDEQ(arch=arch, forward_solver=SOLVER, evaluation_dtype='bfloat16'))
    x = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        expected = model.eval()(x)
        model.switch_to_deploy()
        found = model(x)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
