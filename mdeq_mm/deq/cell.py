"""What a cell promises, and how it is kept fixed during a solve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from .local import LocalStack


class FreezablePart(nn.Module):
    """A part of a cell of which a tensor must stay the same during one solve.

    Dropout masks and normalised weights are such tensors: a function that changes
    between two evaluations has no equilibrium. :meth:`Cell.freeze` asks every part once
    per solve what it holds. In :meth:`forward` the part finds it as :attr:`held`.

    What a part holds belongs to one solve in one thread. It is never stored on the
    module, so that neither another thread nor a later call can see it.
    """

    def draw(self, injections: Sequence[Tensor]) -> Optional[Tensor]:
        """Returns what the part holds during a solve.

        Args:
            injections (Sequence[Tensor]): The injections of the solve, which tell batch
                size, device and dtype.

        Returns:
            Tensor, optional: The tensor to hold, None for nothing.
        """
        raise NotImplementedError

    def select(self, held: Tensor, rows: Tensor) -> Tensor:
        """Returns what the part holds for some samples of the batch.

        Args:
            held (Tensor): What :meth:`draw` has returned for the whole batch.
            rows (Tensor): Numbers of the samples, int64, ``(b,)``.

        Returns:
            Tensor: ``held`` itself, unless a subclass holds something per sample.
        """
        return held

    def reduce(self, held: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns what the part holds for evaluations in reduced precision.

        Args:
            held (Tensor): What :meth:`draw` has returned.
            dtype (torch.dtype): The dtype that autocast computes in.

        Returns:
            Tensor: ``held`` itself, which autocast casts where it is used, unless a
            subclass saves that work in each evaluation.
        """
        return held

    @property
    def held(self) -> Optional[Tensor]:
        """What the part holds now, None outside of a frozen cell."""
        for frozen in reversed(_ACTIVE.items):
            # The innermost may be that of another cell.
            if self in frozen:
                return frozen.held_by(self)
        return None


class Frozen:
    """What the parts of a cell hold during one solve.

    It is a context manager. While it is entered, the cell is frozen in the calling
    thread. It can be entered any number of times, in any thread.

    Args:
        held (dict[FreezablePart, Tensor or None]): What each part holds, None for
            nothing. It is an attribute, too.
    """

    def __init__(self, held: dict[FreezablePart, Optional[Tensor]]) -> None:
        self.held = held

    def __contains__(self, part: FreezablePart) -> bool:
        return part in self.held

    def held_by(self, part: FreezablePart) -> Optional[Tensor]:
        """Returns what a part holds, None for nothing."""
        return self.held.get(part)

    def select(self, rows: Tensor) -> Frozen:
        """Returns what the parts hold for some samples of the batch.

        Args:
            rows (Tensor): Numbers of the samples, int64, ``(b,)``.
        """
        return Frozen(
            {
                part: None if held is None else part.select(held, rows)
                for part, held in self.held.items()
            }
        )

    def reduce(self, dtype: torch.dtype) -> Frozen:
        """Returns what the parts hold for evaluations in reduced precision, no graph.

        Args:
            dtype (torch.dtype): The dtype that autocast computes in.
        """
        return Frozen(
            {
                part: None if held is None else part.reduce(held.detach(), dtype)
                for part, held in self.held.items()
            }
        )

    @classmethod
    def merge(cls, records: Sequence[Frozen]) -> Frozen:
        """Joins several; for a part that is in two of them the later one counts."""
        return cls({k: held for record in records for k, held in record.held.items()})

    def __enter__(self) -> Frozen:
        _ACTIVE.push(self)
        return self

    def __exit__(self, *args: object) -> None:
        _ACTIVE.remove(self)


_ACTIVE: LocalStack[Frozen] = LocalStack()


def current_frozen() -> Optional[Frozen]:
    """Returns what holds in this thread, None where no cell is frozen.

    Activation checkpointing needs it: it evaluates a part of the cell again in
    backward, maybe in another thread, and has to enter there what held before.
    """
    active = _ACTIVE.items
    if len(active) > 1:
        return Frozen.merge(active)
    return active[0] if active else None


class Cell(nn.Module, ABC):
    """The function ``f(z; x)`` whose equilibrium is sought.

    A subclass implements :meth:`forward`. It gets freezing for free: each of its parts
    that is a :class:`FreezablePart`, at any depth, is held during a solve.

    Examples:
        >>> import torch
        >>> from mdeq_mm.deq import Cell, VariationalDropout
        >>> class Affine(Cell):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(4, 4)
        ...         self.dropout = VariationalDropout(0.5, channels=4)
        ...
        ...     def forward(self, states, injections):
        ...         return (self.dropout(self.linear(states[0])) + injections[0],)
        >>> cell, x = Affine(), (torch.zeros(2, 4),)
        >>> with cell.freeze(x):
        ...     torch.equal(cell(x, x)[0], cell(x, x)[0])  # the same mask twice
        True
    """

    @abstractmethod
    def forward(
        self, states: Sequence[Tensor], injections: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Evaluates ``f`` once.

        Args:
            states (Sequence[Tensor]): The feature maps, ``(B, *shape_i)``.
            injections (Sequence[Tensor]): One injection per feature map, of its shape.

        Returns:
            tuple[Tensor]: The next feature maps, of the same shapes.
        """

    def freeze(self, injections: Sequence[Tensor]) -> Frozen:
        """Draws what the parts of the cell hold during one solve.

        Args:
            injections (Sequence[Tensor]): The injections of the solve,
                ``(B, *shape_i)``.

        Returns:
            Frozen: A context manager, within which the cell is frozen.
        """
        parts = (part for part in self.modules() if isinstance(part, FreezablePart))
        return Frozen({part: part.draw(injections) for part in parts})
