"""Small cells whose equilibria are known or quickly found."""

import torch
from torch import nn

from mdeq_mm.deq import Cell, current_frozen


class LinearCell(Cell):
    """A contraction on two feature maps that do not even talk to each other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.5]))
        self.n_calls = 0

    def forward(self, states, injections):
        assert current_frozen() is not None
        self.n_calls += 1
        return tuple(
            weight * z + x for weight, z, x in zip(self.weight, states, injections)
        )


class TanhCell(Cell):
    """A contraction that takes Broyden's method several evaluations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.15 * torch.randn(3, 3))
        self.n_rows = []

    def forward(self, states, injections):
        self.n_rows.append(len(states[0]))
        z, x = states[0], injections[0]
        return (torch.tanh(torch.einsum('ij,bjhw->bihw', self.weight, z) + x),)
