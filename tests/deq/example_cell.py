"""A cell of one's own: a perceptron of two layers, applied to each pixel."""

import torch
from mmengine.registry import MODELS
from torch import nn

from mdeq_mm.deq import Cell, VariationalDropout, freezable_weight_norm


@MODELS.register_module(force=True)
class PerceptronCell(Cell):
    """``tanh(W_2 drop(relu(W_1 z)) + x)`` for each feature map.

    Args:
        channels (Sequence[int]): Channels of each feature map.
        hidden (int): Channels between the two layers. Defaults to 16.
        dropout (float): Probability of the variational dropout. Defaults to 0.0.
    """

    def __init__(self, channels, hidden=16, dropout=0.0):
        super().__init__()
        self.channels = tuple(channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                freezable_weight_norm(nn.Conv2d(width, hidden, 1)),
                nn.ReLU(),
                VariationalDropout(dropout, hidden),
                freezable_weight_norm(nn.Conv2d(hidden, width, 1)),
            )
            for width in self.channels
        )

    def forward(self, states, injections):
        return tuple(
            torch.tanh(layer(z) + x)
            for layer, z, x in zip(self.layers, states, injections)
        )
