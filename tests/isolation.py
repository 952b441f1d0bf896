"""Runs tools in the process of the tests, as if each had a process of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from mmengine.utils import ManagerMixin

TOOLS = Path(__file__).resolve().parents[1] / 'tools'
# Options of a tool that runs in this process. Workers are forked, and what is forked
# from a process with threads, as the tests have some, may wait for ever.
NO_WORKERS = (
    '--cfg-options',
    *(
        f'{part}_dataloader.{setting}'
        for part in ('train', 'val', 'test')
        for setting in ('num_workers=0', 'persistent_workers=False')
    ),
)


def _managers(cls: type = ManagerMixin) -> Iterator[type]:
    """Yields the classes whose instances mmengine keeps by name for the process."""
    for child in cls.__subclasses__():
        yield child
        yield from _managers(child)


@contextlib.contextmanager
def isolated(folder: Path, modules: Path | None = None) -> Iterator[None]:
    """Works in a folder, and takes back what torch and mmengine keep for a process.

    That is the default type of numbers, environment variables, and what mmengine keeps
    by name: default scopes, loggers, message hubs and visualizers. Two runs in one
    second have the same name, and would share them.

    Args:
        folder (Path): Working directory meanwhile.
        modules (Path, optional): A folder of modules to be imported meanwhile and
            forgotten afterwards. Defaults to None.
    """
    before = Path.cwd(), dict(os.environ), list(sys.path), torch.get_default_dtype()
    kept = {cls: dict(cls._instance_dict) for cls in _managers()}
    os.chdir(folder)
    if modules is not None:
        sys.path.insert(0, str(modules))
    try:
        yield
    finally:
        for cls in _managers():
            for name, instance in cls._instance_dict.items():
                if name not in kept.get(cls, {}):
                    for handler in getattr(instance, 'handlers', ()):
                        handler.close()
            cls._instance_dict.clear()
            cls._instance_dict.update(kept.get(cls, {}))
        cwd, environ, sys.path[:], dtype = before
        torch.set_default_dtype(dtype)
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(cwd)
        for name, module in list(sys.modules.items()):
            file = getattr(module, '__file__', None)
            if modules is not None and file and Path(file).parent == Path(modules):
                del sys.modules[name]


@contextlib.contextmanager
def started(command: list, **kwargs: object) -> Iterator[subprocess.Popen]:
    """Starts a program; it and what it has started have ended when the context ends.

    Args:
        command (list): The program and its arguments.
        **kwargs (object): Further arguments of ``subprocess.Popen``.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **kwargs,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def load_tool(path: str) -> ModuleType:
    """Imports a tool by its path under ``tools``, with the modules beside it.

    Args:
        path (str): Path such as ``'analysis_tools/benchmark.py'``.
    """
    file = TOOLS / path
    name = 'tool_' + path.removesuffix('.py').replace('/', '_')
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def run_main(path: str, *args: object, cwd: Path, modules: Path | None = None) -> str:
    """Calls ``main`` of a tool with command-line arguments.

    Args:
        path (str): Path of the tool under ``tools``.
        *args (object): Arguments, as text of the command line.
        cwd (Path): Working directory meanwhile.
        modules (Path, optional): Folder of modules that the config imports.

    Returns:
        str: What the tool printed.
    """
    output = io.StringIO()
    tool = load_tool(path)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(isolated(cwd, modules))
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(output))
            tool.main([str(arg) for arg in args])
    finally:
        # pytest shows it if the test fails.
        print(output.getvalue())
    return output.getvalue()
