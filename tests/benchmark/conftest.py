import pytest
import torch

from mdeq_mm.deq import BroydenSolver
from mdeq_mm.models import MDEQ

CLASSIFIER = 'configs/classification/mdeq-tiny_2xb64_cifar10.py'


@pytest.fixture(scope='session')
def config(root):
    """File of the config of a small classifier."""
    return str(root / CLASSIFIER)


@pytest.fixture
def backbone(calm):
    """A small contraction, in double precision and evaluation mode."""
    arch = dict(channels=(8, 16), num_groups=4, expansion=1)
    solver = BroydenSolver(max_evals=100, tol=1e-9, memory=100)
    backbone = MDEQ(arch=arch, downsample_times=0, forward_solver=solver)
    return calm(backbone).double().eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, dtype=torch.float64)
