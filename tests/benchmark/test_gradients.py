import pytest
import torch
from mmengine.model import BaseModel
from torch import nn, rand

from mdeq_mm.benchmark import compare_gradients, modes_to_compare
from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Equilibrium,
    ImplicitGradient,
    PhantomGradient,
    Unrolled,
)

SOLVER = BroydenSolver(max_evals=12, tol=1e-2)
CONFIGURED = Equilibrium(SOLVER, ImplicitGradient(SOLVER))


class Regressor(BaseModel):
    """The smallest model with losses."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.head(self.backbone(inputs)[0]).square().mean())


class TestModes:
    def test_broyden(self):
        modes = modes_to_compare(CONFIGURED)
        assert list(modes) == [
            'as configured',
            'phantom, 5 steps, damping 0.5',
            'phantom, 5 steps, damping 0.7',
            'Jacobian-free',
            'unrolled 12 times',
            'as configured, from the inverse',
            *(f'SHINE, {n} refinements' for n in (0, 1, 5)),
        ]
        assert modes['as configured'] is CONFIGURED
        assert modes['unrolled 12 times'] == Unrolled(12)

    def test_no_inverse(self):
        anderson = Equilibrium(AndersonSolver(max_evals=7), CONFIGURED.gradient)
        names = ' '.join(modes_to_compare(anderson))
        assert 'inverse' not in names
        assert 'SHINE' not in names
        phantom = modes_to_compare(Equilibrium(SOLVER, PhantomGradient()))
        assert 'as configured, from the inverse' not in phantom
        assert 'SHINE, 1 refinements' in phantom


class TestCompareGradients:
    @pytest.fixture
    def model(self, backbone):
        return Regressor(backbone).double().eval()

    @pytest.fixture
    def data(self):
        return dict(inputs=rand(2, 3, 8, 8, dtype=torch.float64))

    def test_table(self, model, data):
        layer = model.backbone.equilibrium
        with layer.using(mode=CONFIGURED):
            costs = compare_gradients(model, data, max_evals=100)
        assert list(costs) == list(modes_to_compare(CONFIGURED))
        configured, free = costs['as configured'], costs['Jacobian-free']
        assert configured.evaluations == free.evaluations <= 12 + 1
        assert 1 <= configured.products <= 12
        assert configured.saved_bytes == free.saved_bytes
        assert configured.cosine > 0.99
        assert configured.cosine > free.cosine
        unrolled = costs['unrolled 12 times']
        assert (unrolled.evaluations, unrolled.products) == (12, 0)
        assert unrolled.saved_bytes > 5 * configured.saved_bytes
        shine = [costs[f'SHINE, {n} refinements'] for n in (0, 1, 5)]
        assert [cost.products for cost in shine] == [0, 2, 6]
        assert shine[0].cosine < shine[2].cosine <= 1 + 1e-12

    def test_model_keeps_its_settings(self, model, data):
        layer = model.backbone.equilibrium
        layer.mode = Unrolled(2)
        with layer.using(solver=SOLVER):
            costs = compare_gradients(model, data, max_evals=20)
        assert layer.mode == Unrolled(2)
        # As configured, in spite of the unrolled mode that a checkpoint may bring.
        assert 'unrolled 100 times' in costs
