from .blocks import ResidualBlock, VariationalDropout
from .multiscale import MultiscaleCell

__all__ = ['MultiscaleCell', 'ResidualBlock', 'VariationalDropout']
