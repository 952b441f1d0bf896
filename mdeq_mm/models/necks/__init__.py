from .mdeq_fuse import MDEQFuse

__all__ = ['MDEQFuse']
