"""Initial guesses that know feature maps of images."""

from .projected_guess import ProjectedGuess

__all__ = ['ProjectedGuess']
