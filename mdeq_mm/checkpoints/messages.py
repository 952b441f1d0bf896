"""Texts of foreign files in messages."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

_LENGTH = 100
_SHOWN = 5


def quote(text: str) -> str:
    """Returns a text for a message: not too long, and without control characters.

    Args:
        text (str): Any text. What a terminal would obey is escaped.
    """
    more = '…' if len(text) > _LENGTH else ''
    text = text[:_LENGTH]
    if not text.isprintable():
        text = text.encode('unicode_escape').decode('ascii')
    return text + more


def shorten(names: Collection[str], shown: int = _SHOWN) -> str:
    """Joins names for a message, the first few of many.

    Args:
        names (Collection[str]): The names. Each is quoted.
        shown (int): How many of them at most. Defaults to 5.
    """
    parts = [quote(name) for name in islice(names, shown)]
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(parts) + more
