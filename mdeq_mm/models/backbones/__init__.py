"""Backbones that return an equilibrium."""

from .base import EquilibriumBackbone
from .mdeq import MDEQ

__all__ = ['MDEQ', 'EquilibriumBackbone']
