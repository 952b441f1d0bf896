from types import SimpleNamespace

import pytest
import torch


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
