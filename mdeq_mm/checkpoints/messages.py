"""Texts of foreign files in messages."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

_LENGTH = 100
_SHOWN = 5


def quote(text: str, length: int = _LENGTH) -> str:
    """Returns a text for a message: not too long, and without control characters.

    Args:
        text (str): Any text. What a terminal would obey is escaped.
        length (int): After how many characters it is cut. Defaults to 100.
    """
    more = '…' if len(text) > length else ''
    text = text[:length]
    if not text.isprintable():
        text = text.encode('unicode_escape').decode('ascii')
    return text + more


def shorten(names: Collection[str], shown: int = _SHOWN, length: int = _LENGTH) -> str:
    """Joins names for a message, the first few of many.

    Args:
        names (Collection[str]): The names. Each is quoted.
        shown (int): How many of them at most. Defaults to 5.
        length (int): After how many characters each is cut. Defaults to 100.
    """
    parts = [quote(name, length) for name in islice(names, shown)]
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(parts) + more
