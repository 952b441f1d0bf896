"""Cells: the functions whose equilibrium a backbone computes."""

from .blocks import ResidualBlock
from .multiscale import MultiscaleCell

__all__ = ['MultiscaleCell', 'ResidualBlock']
