"""What a training goes on from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Union

from .loading import load_checkpoint

_NUMBERED = re.compile(r'(?P<kind>.*?)(?P<number>\d+)')
_NEEDED = ('state_dict', 'meta', 'message_hub', 'optimizer')


class IncompleteError(ValueError):
    """A checkpoint is whole, but holds too little to resume from."""


class Position(NamedTuple):
    """How far a training is.

    Attributes:
        iteration (int): Iterations done.
        epoch (int): Epochs done.
    """

    iteration: int
    epoch: int


@dataclass(frozen=True)
class Newest:
    """What :func:`find_newest` has found.

    Attributes:
        path (str, optional): The newest whole checkpoint, None if there is none.
        position (Position, optional): How far it is.
        skipped (dict[Path, str]): Newer ones that were not taken, and why.
    """

    path: Optional[str]
    position: Optional[Position]
    skipped: dict[Path, str]

    def __str__(self) -> str:
        lines = [f'skipped {path}: {why}' for path, why in self.skipped.items()]
        if self.path is None:
            return '\n'.join(['no whole checkpoint found: starting anew', *lines])
        return '\n'.join([f'resuming from {self.path}', *lines])


def find_newest(folders: Iterable[Union[str, Path]]) -> Newest:
    """Finds the newest checkpoint that a training can go on from.

    Checkpoints are the files ``*.pth`` whose names end in a number, such as
    ``iter_300.pth``, but not the best ones, which hold weights alone. They are loaded
    from the highest number down, until one is whole. Where there are several kinds of
    names, as of iterations and of epochs, that of most iterations is taken.

    What ``last_checkpoint`` names is looked at, too, whatever its name. A file of that
    name in one of the folders goes before the one that is named, which may be
    elsewhere, and may be gone.

    Args:
        folders (Iterable[str or Path]): Where to look, such as the work directory.

    Returns:
        Newest: What was found.

    Raises:
        ValueError: If there are whole checkpoints, but none that can be resumed from. A
            training that starts anew would overwrite them.
    """
    kinds: dict[str, list[tuple[int, Path]]] = {}
    skipped: dict[Path, str] = {}
    for path, is_last in _candidates([Path(folder) for folder in folders], skipped):
        name = _NUMBERED.fullmatch(path.stem)
        if name is not None and not name['kind'].startswith('best_'):
            number = int(name['number'])
            kinds.setdefault(name['kind'], []).append((number, path))
        elif is_last:
            kinds.setdefault(path.name, []).append((0, path))
    whole: list[tuple[Position, Path]] = []
    incomplete: list[IncompleteError] = []
    for numbered in kinds.values():
        for _, path in sorted(numbered, reverse=True):
            try:
                whole.append((check_training_checkpoint(path), path))
                break
            except (OSError, ValueError) as error:
                skipped[path] = str(error)
                if isinstance(error, IncompleteError):
                    incomplete.append(error)
    if incomplete and not whole:
        raise incomplete[0]
    if not whole:
        return Newest(None, None, skipped)
    position, path = max(whole)
    return Newest(str(path), position, skipped)


def check_training_checkpoint(name: Union[str, Path]) -> Position:
    """Makes sure that a training can go on from a checkpoint.

    Args:
        name (str or Path): File or URL.

    Returns:
        Position: How far the training was.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be loaded, or holds less than mmengine writes for a
            training, such as weights alone.
    """
    if Path(name).is_dir():
        # Some strategies write a folder of files, which they alone can read.
        if not any(Path(name).iterdir()):
            raise ValueError(f'{name} is an empty folder')
        number = _NUMBERED.fullmatch(Path(name).stem)
        return Position(int(number['number']) if number else 0, 0)
    checkpoint = load_checkpoint(name)
    parts = checkpoint if isinstance(checkpoint, Mapping) else {}
    lacking = [key for key in _NEEDED if not isinstance(parts.get(key), Mapping)]
    meta = {} if lacking else parts['meta']
    if not lacking:
        counts = [key for key in ('iter', 'epoch') if type(meta.get(key)) is not int]
        lacking = [f'meta.{key}' for key in counts]
    if lacking:
        raise IncompleteError(
            f'{name} is no checkpoint to resume from, it lacks {", ".join(lacking)}; '
            'to start from its weights, set load_from to it instead'
        )
    return Position(meta['iter'], meta['epoch'])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no file system takes a name that is so long
        return False


def _candidates(
    folders: list[Path], skipped: dict[Path, str]
) -> Iterator[tuple[Path, bool]]:
    """Yields the checkpoints of the folders, and whether last_checkpoint names them."""
    found = [path for folder in folders for path in sorted(folder.glob('*.pth'))]
    names = {path.name for path in found}
    named = set()
    for folder in folders:
        last = folder / 'last_checkpoint'
        if not last.is_file():
            continue
        text = last.read_text(errors='replace').strip('\0 \n')
        if not text:
            skipped[last] = 'it is empty'
            continue
        named.add(Path(text).name)
        if Path(text).name not in names:
            if _exists(Path(text)):
                found.append(Path(text))
            else:
                shown = text if len(text) <= 100 else f'{text[:100]}...'
                skipped[last] = f'it names {shown}, which does not exist'
    for path in found:
        yield path, path.name in named
