"""Backbones that return an equilibrium."""

from .mdeq import MDEQ

__all__ = ['MDEQ']
