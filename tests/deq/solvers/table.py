"""All solvers, in the settings to be tested: a new one is one line."""

from dataclasses import dataclass
from functools import partial
from typing import Callable

import pytest

from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    FixedPointSolver,
    PicardSolver,
)

from .example_solver import AitkenSolver


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        make (Callable): Makes the solver, with further settings as keywords.
        accelerates (bool): Whether it needs no more evaluations than the plain
            iteration where that converges slowly.
    """

    make: Callable[..., FixedPointSolver]
    accelerates: bool


def solver(cls, accelerates=True, **settings):
    values = ', '.join(f'{name}={value}' for name, value in settings.items())
    return pytest.param(
        Entry(partial(cls, **settings), accelerates), id=f'{cls.__name__}({values})'
    )


SOLVERS = [
    solver(PicardSolver, accelerates=False),
    solver(PicardSolver, accelerates=False, damping=1),
    solver(AndersonSolver),
    solver(AndersonSolver, accelerates=False, window=1),
    solver(AndersonSolver, window=2),
    solver(AndersonSolver, ridge=0.0, mixing=0.8),
    solver(AndersonSolver, history_dtype='bfloat16'),
    solver(BroydenSolver),
    solver(BroydenSolver, memory=2),
    solver(BroydenSolver, memory=100),
    # Rounded steps cost evaluations where convergence is slow.
    solver(BroydenSolver, accelerates=False, history_dtype='bfloat16'),
    solver(AitkenSolver),
]
