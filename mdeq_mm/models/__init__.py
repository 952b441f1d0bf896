from .backbones import MDEQ
from .cells import MultiscaleCell
from .necks import MDEQFuse

__all__ = ['MDEQ', 'MDEQFuse', 'MultiscaleCell']
