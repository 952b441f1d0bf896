from .projected_guess import ProjectedGuess

__all__ = ['ProjectedGuess']
