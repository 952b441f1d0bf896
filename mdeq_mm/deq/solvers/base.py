"""What a fixed-point method implements, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from torch import Tensor

from ..checks import check_choice, check_int, check_number
from . import loop
from .low_rank import LowRankInverse
from .reduced import FixedPointFunction, ReducedFunction
from .solution import Solution

STOP_MODES = ('abs', 'rel')
RETURNS = ('iterate', 'evaluation')


@dataclass
class MethodState:
    """What a method remembers between evaluations; tensors begin with the batch.

    A method that remembers something makes a dataclass of it, derived from this one.

    Attributes:
        active (Tensor, optional): Which samples still run, bool, ``(B,)``; None for
            all. The loop sets it before each step.
    """

    active: Optional[Tensor] = field(default=None, init=False)

    def select(self, rows: Tensor) -> None:
        """Keeps the samples of the given numbers alone, in this order."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


@dataclass(frozen=True)
class FixedPointSolver(ABC):
    """Finds ``z = f(z)`` for each sample of a batch on its own.

    The rules of every solver:

    - ``f`` is evaluated at most ``max_evals`` times for each sample and never again on
      the result.
    - Stopping is per sample. A sample that has met the tolerance, or for which ``f``
      returned NaN or Inf, is frozen at its best result: that does not depend on its
      batch mates. The solve ends when every sample has stopped.
    - No graph is recorded. The arithmetic is in float32, or in float64 if the initial
      state is, whatever autocast makes of ``f``.

    A solver is a frozen dataclass of its settings; :func:`dataclasses.replace` makes
    one with other settings. A method must implement :meth:`step`, may implement
    :meth:`init` and :meth:`inverse_jacobian`, and leaves the rules to the loop.

    Args:
        max_evals (int): Budget of evaluations of ``f``, at least 1. Defaults to 30.
        tol (float): A sample has converged when its residual is at most this. With 0
            only an exact fixed point has; other samples run until the budget is spent
            or they break down. Defaults to 1e-3.
        stop_mode (str): Measure of the residual: ``'abs'`` is ``||f(z) - z||``,
            ``'rel'`` is ``||f(z) - z|| / (||f(z)|| + 1e-8)``. Defaults to ``'rel'``.
        check_interval (int, optional): Evaluations from one look at whether all samples
            have stopped to the next. Defaults to None: 1 on CPU, and 3 where a look
            waits for the device. A breakdown after the last look is in the status, but
            there is no warning of it.
        returns (str): What a solve returns of the visited iterate ``z`` with the
            smallest residual: ``'iterate'`` is ``z`` itself; ``'evaluation'`` is
            ``f(z)``, which the solve has computed anyway. An equilibrium layer in
            training takes ``z``, because its gradient evaluates ``f`` there. So with
            ``'evaluation'`` inference gives the head the state that it was trained on.
            Defaults to ``'iterate'``.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> class Halfway(FixedPointSolver):
        ...     def step(self, state, z, fz, g):
        ...         return (z + fz) / 2
        >>> Halfway(tol=1e-6).solve(torch.cos, torch.ones(2, 1)).converged
        tensor([True, True])
    """

    max_evals: int = 30
    tol: float = 1e-3
    stop_mode: str = 'rel'
    check_interval: Optional[int] = None
    returns: str = 'iterate'

    def __post_init__(self) -> None:
        check_int('max_evals', self.max_evals, 1)
        check_number('tol', self.tol, least=0)
        check_choice('stop_mode', self.stop_mode, STOP_MODES)
        check_int('check_interval', self.check_interval, 1, optional=True)
        check_choice('returns', self.returns, RETURNS)

    def solve(
        self,
        f: FixedPointFunction,
        z0: Tensor,
        keep: Collection[int] = (),
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
        reduced: Optional[ReducedFunction] = None,
    ) -> Solution:
        """Solves ``z = f(z)``.

        Args:
            f (Callable): Maps a state ``(B, N)`` to a state ``(B, N)``, which must be a
                new tensor each time.
            z0 (Tensor): Initial state, floating point, ``(B, N)``.
            keep (Collection[int]): Numbers of the evaluations, counted from 1, whose
                iterates the solution keeps, as far as the solve gets. Defaults to ().
            restrict (Callable, optional): Given the int64 numbers ``(b,)`` of some
                samples, returns ``f`` for those samples, from ``(b, N)`` to ``(b, N)``.
                With it, samples that have stopped leave the batch, and then no inverse
                Jacobian is returned. Not together with ``keep``. Defaults to None.
            reduced (ReducedFunction, optional): ``f`` in reduced precision, with which
                each sample begins, see there. Defaults to None.

        Returns:
            Solution: The best state of each sample and how it was found.

        Raises:
            ValueError: If ``z0`` or the result of ``f`` has the wrong shape or dtype,
                or if both ``keep`` and ``restrict`` are given.
        """
        return loop.solve(self, f, z0, keep, restrict, reduced)

    def pauses(
        self,
        f: FixedPointFunction,
        z0: Tensor,
        at: Optional[Collection[int]] = None,
        restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
        reduced: Optional[ReducedFunction] = None,
    ) -> Iterator[Solution]:
        """Solves ``z = f(z)`` as :meth:`solve` does, with pauses.

        ``f`` is called only when the next solution is asked for. Whoever asks for no
        more has paid for no more.

        Args:
            f (Callable): See :meth:`solve`.
            z0 (Tensor): The same.
            at (Collection[int], optional): Numbers of the evaluations, counted from 1,
                after which to pause, as far as the solve gets. Defaults to None, after
                each.
            restrict (Callable, optional): See :meth:`solve`.
            reduced (ReducedFunction, optional): The same.

        Yields:
            Solution: What has been found so far; its samples may still run. The last
            one, after the end of the solve, is what :meth:`solve` returns.

        Raises:
            ValueError: As :meth:`solve`.
        """
        return loop.pauses(self, f, z0, at, restrict, reduced)

    def init(self, z0: Tensor) -> MethodState:
        """Returns what the method remembers, before the first evaluation.

        Args:
            z0 (Tensor): Initial state, float32 or float64, ``(B, N)``. It must not be
                changed.
        """
        return MethodState()

    def residual(self, state: Any, z: Tensor, fz: Tensor) -> Tensor:
        """Returns ``f(z) - z``, ``(B, N)``.

        A method that keeps the residuals overrides this and writes them where they are
        kept, which saves a copy.

        Args:
            state (MethodState): What :meth:`init` returned; may be updated in place.
            z (Tensor): Current iterate, ``(B, N)``. It must not be changed.
            fz (Tensor): ``f(z)``, ``(B, N)``. It must not be changed.
        """
        return fz - z

    @abstractmethod
    def step(self, state: Any, z: Tensor, fz: Tensor, g: Tensor) -> Tensor:
        """Returns the next iterate, ``(B, N)``, a tensor other than ``z``.

        The iterate of a sample that has stopped is not used and may be NaN.

        Args:
            state (MethodState): What :meth:`init` returned; updated in place.
            z (Tensor): Current iterate, ``(B, N)``. It must not be changed, because it
                may be the best so far.
            fz (Tensor): ``f(z)``, ``(B, N)``; may be returned.
            g (Tensor): What :meth:`residual` returned, ``(B, N)``; may be overwritten.
        """

    def inverse_jacobian(self, state: Any) -> Optional[LowRankInverse]:
        """Returns the approximate inverse Jacobian the method ended with, if any.

        Args:
            state (MethodState): What :meth:`init` returned, after the last step.
        """
        return None
