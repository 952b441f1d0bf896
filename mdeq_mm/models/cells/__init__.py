"""Cells: the functions whose equilibrium a backbone computes."""

from .blocks import ResidualBlock
from .mean_only_group_norm import MeanOnlyGroupNorm
from .multiscale import MultiscaleCell
from .transformer import SelfAttention, TransformerCell

__all__ = [
    'MeanOnlyGroupNorm',
    'MultiscaleCell',
    'ResidualBlock',
    'SelfAttention',
    'TransformerCell',
]
