import pytest
import torch
from mmengine.model import BaseModel

from mdeq_mm.benchmark import convergence_trace
from mdeq_mm.deq import BroydenSolver, Unrolled


class Model(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.backbone(inputs)


@pytest.fixture
def model(backbone):
    return Model(backbone).eval()


def batches(sizes, taken):
    for size in sizes:
        taken.append(size)
        yield dict(inputs=torch.rand(size, 3, 8, 8, dtype=torch.float64))


def test_whole_budget(model):
    taken = []
    layer = model.backbone.equilibrium
    with layer.using(solver=BroydenSolver(max_evals=3, tol=0.5, stop_mode='abs')):
        trace = convergence_trace(model, batches([2, 2, 2], taken), 3, 25)
    assert trace.shape == (25, 3)
    assert taken == [2, 2]
    assert (trace[-1] < 1e-3 * trace[0]).all()


def test_solves_that_begin_in_bfloat16(model):
    """Some images wait for others, which no row of the trace shows."""
    model.float().backbone.equilibrium.evaluation_dtype = 'bfloat16'
    scale = torch.tensor([1e-2, 1.0, 30.0]).view(3, 1, 1, 1)
    images = torch.rand(4, 3, 3, 8, 8) * scale
    trace = convergence_trace(model, [dict(inputs=x) for x in images], 12, 25)
    assert trace.shape == (25, 12)


def test_fewer_samples_than_asked_for(model):
    assert convergence_trace(model, batches([2], []), 3, 4).shape == (4, 2)


def test_unrolled_model_is_solved(model):
    layer = model.backbone.equilibrium
    layer.mode = Unrolled(2)
    assert convergence_trace(model, batches([1], []), 1, 4).shape == (4, 1)
    assert layer.mode == Unrolled(2)
