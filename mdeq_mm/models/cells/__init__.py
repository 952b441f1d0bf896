"""Cells: the functions whose equilibrium a backbone computes."""

from .blocks import ResidualBlock
from .multiscale import MultiscaleCell
from .transformer import SelfAttention, TransformerCell

__all__ = ['MultiscaleCell', 'ResidualBlock', 'SelfAttention', 'TransformerCell']
