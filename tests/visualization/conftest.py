import pytest
import torch

from mdeq_mm.deq import EquilibriumLayer, ImplicitGradient, PicardSolver
from mdeq_mm.visualization import examine

from ..deq.toys import LinearCell


@pytest.fixture
def solving_layer():
    """A layer at the equilibrium, which takes some plain iterations."""
    solver = PicardSolver(max_evals=12, tol=1e-2, damping=1.0)
    gradient = ImplicitGradient(PicardSolver(max_evals=20, tol=1e-3))
    return EquilibriumLayer(LinearCell(), solver, gradient).eval()


@pytest.fixture
def images():
    """Injections of two samples; the second map is the finer one."""
    return torch.rand(2, 4, 2, 3), torch.rand(2, 2, 4, 6)


@pytest.fixture
def examined(solving_layer, images):
    """The examination of the second sample."""
    with torch.no_grad():
        forward_pass = solving_layer(images).forward_pass
    return examine(solving_layer, forward_pass, sample=1, linearize=True)
