"""A stack that every thread has for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar('T')


class LocalStack(threading.local, Generic[T]):
    """What is in force in the calling thread, innermost last.

    Another thread begins with an empty stack of its own.

    Attributes:
        items (list): What has been pushed in this thread and has not ended.
    """

    def __init__(self) -> None:
        self.items: list[T] = []

    def push(self, item: T) -> None:
        """Puts an item on the stack of this thread."""
        self.items.append(item)

    def remove(self, item: T) -> None:
        """Takes an item off the stack of this thread, wherever it lies.

        Contexts need not end in the reverse of the order in which they began, as two
        generators show that take turns. So the very item is looked for, from the top.
        """
        _remove(self.items, item)

    @contextmanager
    def pushed(self, item: T) -> Iterator[None]:
        """Keeps an item on the stack while the context lasts.

        The item leaves the stack it was put on, also where another thread ends the
        context, as the garbage collector may.
        """
        items = self.items
        items.append(item)
        try:
            yield
        finally:
            _remove(items, item)


def _remove(items: list[T], item: T) -> None:
    for index in reversed(range(len(items))):
        if items[index] is item:
            del items[index]
            return
