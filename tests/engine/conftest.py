"""A model so small that a training iteration takes a millisecond."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.deq import Cell, EquilibriumLayer, ImplicitGradient, PicardSolver


class ToyCell(Cell):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, states, injections):
        return (torch.tanh(self.linear(states[0]) + injections[0]),)


class ToyModel(BaseModel):
    """Returns a loss, or its features, from one equilibrium per call."""

    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.layer = EquilibriumLayer(
            ToyCell(width),
            PicardSolver(max_evals=6),
            ImplicitGradient(PicardSolver(max_evals=6)),
            num_layers=2,
        )

    def forward(self, x, mode='loss'):
        (feature,) = self.layer((self.stem(x),)).features
        return dict(loss=feature.square().mean()) if mode == 'loss' else feature


@pytest.fixture
def toy_model():
    return ToyModel().train()


@pytest.fixture
def make_fake_runner(request):
    """Makes what hooks read of a runner, around any model."""

    def make(model, **attributes):
        defaults = dict(
            model=model,
            iter=0,
            epoch=0,
            seed=0,
            optim_wrapper=None,
            hooks=[],
            train_dataloader=range(100),
            logger=logging.getLogger(request.node.name),
            message_hub=MessageHub.get_instance(request.node.name),
        )
        return SimpleNamespace(**{**defaults, **attributes})

    return make


@pytest.fixture
def n_observers():
    """Counts what is registered on a model and its modules."""

    def count(model):
        total = 0
        for module in model.modules():
            total += len(module._forward_hooks) + len(module._forward_pre_hooks)
            total += len(getattr(module, '_pass_hooks', ()))
        return total

    return count
