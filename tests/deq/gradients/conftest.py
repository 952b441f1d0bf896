from types import SimpleNamespace

import pytest
import torch

from mdeq_mm.deq import BroydenSolver, Equilibrium, ForwardPass, StateLayout

FORWARD = BroydenSolver(max_evals=200, tol=1e-13)


@pytest.fixture
def problem():
    """``f(z) = tanh(A z) + x`` in float64, a contraction, with A and x as leaves."""
    matrix = torch.randn(7, 7, dtype=torch.float64)
    matrix = 0.6 * matrix / torch.linalg.matrix_norm(matrix, 2)
    matrix.requires_grad_()
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    return SimpleNamespace(
        matrix=matrix,
        x=x,
        f=lambda z: torch.tanh(z @ matrix.T) + x,
        z0=torch.zeros(3, 7, dtype=torch.float64),
        weight=torch.randn(3, 7, dtype=torch.float64),
    )


@pytest.fixture
def run():
    """Makes a forward pass for a function of states, without a layer."""

    def run(gradient, f, z0, solver=FORWARD):
        mode = Equilibrium(solver, gradient)
        forward_pass = ForwardPass(f, StateLayout([z0.shape[1:]]), z0, mode, state=z0)
        forward_pass.state = mode.run(forward_pass, differentiate=True)
        return forward_pass

    return run
