"""Parts of a report, each a process of its own, which may fail or take too long."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import Optional

MAX_LINES = 60
# Seconds between asking a process to end and ending it.
GRACE_PERIOD = 5.0


@dataclass(frozen=True)
class ReportPart:
    """One part of a report.

    Attributes:
        title (str): Its heading.
        share (float): Its share of the time. What a part leaves over goes to those
            after it.
        command (Sequence[str]): What to run.
        prepare (Callable, optional): Called with the folder before that.
            Defaults to None.
        read (Callable, optional): Makes lines of the report from the folder in which
            the command has run. Defaults to None, the end of its output.
    """

    title: str
    share: float
    command: Sequence[str]
    prepare: Optional[Callable[[Path], object]] = None
    read: Optional[Callable[[Path], list[str]]] = None


def run_part(
    part: ReportPart, folder: Path, root: Path, device: str, limit: float
) -> tuple[str, list[str]]:
    """Runs a part of a report. A command that fails raises no error.

    Args:
        part (ReportPart): The part.
        folder (Path): Working directory.
        root (Path): The checkout, whose modules the command may import.
        device (str): The device; on ``'cpu'`` no GPU is shown to the process.
        limit (float): Seconds it may take. Ending it takes up to two times
            ``GRACE_PERIOD`` more.

    Returns:
        tuple[str, list[str]]: How it ended, which begins with ``'ok'`` where it ended
        well, and the lines to report.
    """
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', 'PYTHONPATH': str(root)}
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    begin = time.monotonic()
    if part.prepare is not None:
        try:
            part.prepare(folder)
        except (OSError, LZMAError, subprocess.SubprocessError) as error:
            stderr = getattr(error, 'stderr', None) or b''
            lines = [*stderr.decode(errors='replace').splitlines(), repr(error)]
            return 'FAILED before it began', excerpt('\n'.join(lines), root)
    with tempfile.TemporaryFile('w+', errors='replace', newline='\n') as output:
        process = subprocess.Popen(
            part.command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=max(limit, 0))
            status = 'ok' if code == 0 else f'FAILED with exit code {code}'
        except subprocess.TimeoutExpired:
            status = 'OUT OF TIME'
        finally:
            _end(process)
        output.seek(0)
        lines = excerpt(output.read(), root)
    seconds = time.monotonic() - begin
    if part.read is not None and status == 'ok':
        lines = part.read(folder) or lines
    return f'{status}, {seconds:.0f} s', lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_PERIOD)


def excerpt(output: str, root: Path) -> list[str]:
    """Returns the end of an output, without what passed and without private paths.

    Args:
        output (str): What a program has printed.
        root (Path): The checkout, which is shown as ``.``.
    """
    output = output.rstrip()
    for path, name in ((root, '.'), (Path.home(), '~')):
        output = output.replace(str(path), name)
    # Terminals rewrite lines and colour them.
    output = re.sub(r'\x1b\[[0-9;]*m', '', output)
    lines = [line.rstrip().rpartition('\r')[2][:200] for line in output.split('\n')]
    lines = [x for x in lines if not re.search(r' (PASSED|SKIPPED)\b.*\[ *\d+%\]$', x)]
    left_out = len(lines) - MAX_LINES
    return [f'({left_out} lines before)', *lines[left_out:]] if left_out > 0 else lines
