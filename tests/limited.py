"""Runs a function in a process that can take neither the machine nor the tests down."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = resource.getpagesize()


def limited(
    function: Callable[..., Any],
    *args: object,
    memory: int = 1 << 29,
    seconds: int = 30,
) -> Any:
    """Calls a function in a process with a limit on memory and time.

    Args:
        function (Callable): The function. Its result must be picklable.
        *args (object): Its arguments.
        memory (int): Bytes that it may take, besides those that this process has.
            Defaults to 512 MiB.
        seconds (int): Seconds after which it is stopped. Defaults to 30.

    Returns:
        object: Its result, or the exception that it raised.

    Raises:
        AssertionError: If it crashed, or did not end.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(sender, memory, seconds, function, args), daemon=True
    )
    process.start()
    sender.close()
    try:
        assert receiver.poll(seconds), f'no end within {seconds} s'
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            raise AssertionError(f'ended with code {process.exitcode}') from None
    finally:
        process.kill()
        process.join()
        receiver.close()


def _child(
    sender: Any, memory: int, seconds: int, function: Callable, args: tuple
) -> None:
    taken = int(Path('/proc/self/statm').read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        result = function(*args)
    except Exception as error:  # noqa: BLE001  whatever it is, the test looks at it
        result = error
        result.__cause__ = result.__context__ = None
    sender.send(result)
