"""Necks that join the branches of a backbone."""

from .mdeq_fuse import MDEQFuse

__all__ = ['MDEQFuse']
