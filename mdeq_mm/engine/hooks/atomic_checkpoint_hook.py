"""Checkpoints that are whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Saves checkpoints as :class:`CheckpointHook` does, and never half of one.

    The stock hook writes checkpoints and ``last_checkpoint`` in place, and removes old
    ones first. A run that is killed meanwhile, a power cut or a full disk then leaves a
    torn file under a final name, or none at all. This hook writes into the folder
    ``.unfinished`` beside them, makes sure that everything is on the disk, and gives
    files their names in one step. Old checkpoints are removed after that. So one
    more of them than ``max_keep_ckpts`` must fit on the disk, and stays if the run is
    killed right then.

    A hook whose files do not go to a local disk does what the stock hook does.

    Args:
        *args (Any): Arguments of :class:`CheckpointHook`.
        **kwargs (Any): The same.

    Examples:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='AtomicCheckpointHook', interval=1000)
        ... )
    """

    FOLDER = '.unfinished'

    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        """Removes what a killed run has left behind."""
        super().before_train(runner)
        self._is_local = type(self.file_backend) is LocalBackend
        if self._is_local:
            self.file_backend = _RemovesLater()
            if is_main_process():
                for folder in (self.out_dir, runner.work_dir):
                    shutil.rmtree(Path(folder, self.FOLDER), ignore_errors=True)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint if one is due."""
        self._atomically(super().after_train_iter, runner, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Saves a checkpoint if one is due."""
        self._atomically(super().after_train_epoch, runner)

    def after_val_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Saves a checkpoint if it is the best one."""
        self._atomically(super().after_val_epoch, runner, *args, **kwargs)

    def _atomically(
        self, save: Callable, runner: Runner, *args: Any, **kwargs: Any
    ) -> None:
        # Before the first training, as in a validation, mmengine has no backend yet.
        if not getattr(self, '_is_local', False):
            save(runner, *args, **kwargs)
            return
        view = _RunnerView(runner, self.FOLDER)
        try:
            save(view, *args, **kwargs)
            view.name_last()
        except BaseException:
            self.file_backend.forget()
            raise
        finally:
            view.clean()
        self.file_backend.remove_now(view.published)


class _RunnerView:
    """A runner as the stock hook sees it: its files go somewhere else first.

    Args:
        runner (Runner): The runner.
        name (str): Name of the folder for unfinished files.
    """

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner = runner
        self._name = name
        self._folders: set[Path] = set()
        self.published: set[Path] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    @property
    def work_dir(self) -> str:
        """Folder that the stock hook writes ``last_checkpoint`` to."""
        return str(self._unfinished(self._runner.work_dir))

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, **kwargs: Any
    ) -> None:
        """Saves a checkpoint under another name, and then gives it its own."""
        folder = self._unfinished(out_dir)
        self._runner.save_checkpoint(str(folder), filename, *args, **kwargs)
        if not isinstance(self._runner, Runner):
            barrier()  # with some strategies each process writes a part
        final = Path(out_dir, filename)
        _publish(folder / filename, final)
        self.published.add(_place(final))

    def name_last(self) -> None:
        """Lets ``last_checkpoint`` name what was saved."""
        for folder in self._folders:
            _publish(folder / 'last_checkpoint', folder.parent / 'last_checkpoint')

    def clean(self) -> None:
        """Removes what is unfinished."""
        if is_main_process():
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _unfinished(self, folder: str) -> Path:
        path = Path(folder, self._name)
        if is_main_process():
            path.mkdir(parents=True, exist_ok=True)
        self._folders.add(path)
        return path


class _RemovesLater(LocalBackend):
    """A local disk from which nothing goes before what replaces it is there."""

    def __init__(self) -> None:
        super().__init__()
        self._removals: list[tuple[Path, Callable[[], None]]] = []

    def remove(self, filepath: Any) -> None:
        """Remembers a file to be removed."""
        self._later(filepath, super().remove)

    def rmtree(self, dir_path: Any) -> None:
        """Remembers a folder to be removed."""
        self._later(dir_path, super().rmtree)

    def forget(self) -> None:
        """Keeps what was to be removed."""
        self._removals = []

    def remove_now(self, replaced: Collection[Path]) -> None:
        """Removes what is remembered.

        Args:
            replaced (Collection[Path]): Files that have been written anew since, under
                the same name. They stay.
        """
        removals, self._removals = self._removals, []
        for path, removal in removals:
            if path not in replaced:
                with suppress(FileNotFoundError):
                    removal()

    def _later(self, path: Any, remove: Callable[[Any], None]) -> None:
        self._removals.append((_place(path), partial(remove, path)))


def _place(path: Any) -> Path:
    """Returns where a name stands, however its folder is written."""
    return Path(path).parent.resolve() / Path(path).name


def _publish(unfinished: Path, final: Path) -> None:
    """Gives a file or a folder of files its name once it is on the disk."""
    if not is_main_process() or not unfinished.exists():
        return
    final.parent.mkdir(parents=True, exist_ok=True)  # a name may hold a folder
    parts = [unfinished]
    if unfinished.is_dir():
        parts = [*unfinished.rglob('*'), unfinished]
        if final.is_dir():
            shutil.rmtree(final)  # a folder cannot be replaced in one step
    for part in parts:
        _sync(part)
    unfinished.replace(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    if os.name != 'posix':  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do that for a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
