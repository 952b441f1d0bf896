"""Backbones that return an equilibrium."""

from .base import EquilibriumBackbone
from .deq_vit import DEQViT
from .mdeq import MDEQ

__all__ = ['MDEQ', 'DEQViT', 'EquilibriumBackbone']
