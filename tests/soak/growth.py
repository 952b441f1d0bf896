"""What must not grow with the number of steps or of models."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import os
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from torch import nn

from mdeq_mm.deq import PhantomGradient, PicardSolver, Unrolled
from mdeq_mm.engine import (
    ImplicitGradientHook,
    InitialGuessLossHook,
    JacobianRegularizationHook,
    TrajectorySupervisionHook,
)
from mdeq_mm.models import MDEQ

ARCH = dict(channels=(8, 8), num_groups=2, expansion=1, downsample_times=0)
SOLVER = dict(type='BroydenSolver', max_evals=4, tol=1e-2)
# By how much memory may grow, in KiB. The allocator does not give everything back: 240
# builds took 4 MiB, and 960 more of them 1 MiB.
SLACK = 8192
# Steps before which nothing is measured, at least: they import and cache things.
LEAST_WARM = 10


@dataclass(frozen=True)
class Usage:
    """What the process uses.

    Attributes:
        kib (int): Resident memory, without what is mapped from files.
        tensors (int): Tensors that are alive.
        hooks (int): Functions that are registered on the modules.
        descriptors (int): Open files.
        threads (int): Threads of Python.
        classes (int): Classes of modules.
    """

    kib: int
    tensors: int
    hooks: int
    descriptors: int
    threads: int
    classes: int

    @classmethod
    def now(cls, model: nn.Module | None = None) -> Usage:
        """Measures, after a collection."""
        gc.collect()
        give_back_memory()
        return cls(
            kib=resident_kib(),
            tensors=sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()),
            hooks=n_hooks(model) if model is not None else 0,
            descriptors=len(os.listdir('/proc/self/fd')),  # noqa: PTH208
            threads=threading.active_count(),
            classes=n_subclasses(nn.Module),
        )

    def growth(self, earlier: Usage) -> dict[str, int]:
        """Returns by how much each has grown."""
        before = asdict(earlier)
        return {key: value - before[key] for key, value in asdict(self).items()}


def resident_kib() -> int:
    """Returns the resident memory of its own that the process has, in KiB."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'RssAnon:\s+(\d+) kB', status)[1])


def give_back_memory() -> None:
    """Asks the allocator of the C library to return what is free, if it can."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def n_hooks(model: nn.Module) -> int:
    """Counts what is registered on the modules of a model."""
    return sum(
        len(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name.endswith('_hooks') and hasattr(value, '__len__')
    )


def n_subclasses(cls: type) -> int:
    """Counts the classes that derive from one."""
    seen, todo = set(), [cls]
    while todo:
        for child in todo.pop().__subclasses__():
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return len(seen)


def grows(
    step: Callable[[int], None], n_steps: int, model: nn.Module | None = None
) -> tuple[dict[str, int], list[str]]:
    """Takes steps, of which the first fifth, and at least ten, warm up.

    Args:
        step (Callable): Called with the number of the step.
        n_steps (int): How many to take.
        model (nn.Module, optional): The model whose hooks are counted. Defaults to
            None.

    Returns:
        tuple[dict[str, int], list[str]]: Growth of each, and what went wrong.
    """
    warm = max(n_steps // 5, LEAST_WARM)
    for number in range(warm):
        step(number)
    before = Usage.now(model)
    for number in range(warm, n_steps):
        step(number)
    growth = Usage.now(model).growth(before)
    faults = [
        f'{key} grew by {value} in {n_steps - warm} steps'
        for key, value in growth.items()
        if value > (SLACK if key == 'kib' else 0)
    ]
    return growth, faults


class Classifier(BaseModel):
    """A stock model as hooks see it: a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MDEQ(
            arch=ARCH,
            forward_solver=SOLVER,
            gradient=dict(type='ImplicitGradient', solver=SOLVER),
            initial_guess=dict(type='ProjectedGuess'),
            num_layers=2,
            dropout=0.2,
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor, mode: str = 'tensor') -> object:
        """Returns logits, or the loss."""
        logits = self.fc(self.backbone(images)[0].mean(dim=(2, 3)))
        return dict(loss=logits.square().mean()) if mode == 'loss' else logits


def train_and_predict(n_steps: int) -> tuple[dict[str, int], list[str]]:
    """Trains in every mode with every hook, and predicts in between."""
    torch.manual_seed(0)
    model = Classifier()
    layer = model.backbone.equilibrium
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    hooks = [
        ImplicitGradientHook(),
        JacobianRegularizationHook(weight=0.1, freq=0.5, max_evals_delta=1),
        TrajectorySupervisionHook(n_states=1, weight=0.1),
        InitialGuessLossHook(),
    ]
    runner = SimpleNamespace(
        cfg={},
        model=model,
        iter=0,
        epoch=0,
        seed=0,
        hooks=[],
        optim_wrapper=None,
        train_dataloader=range(n_steps),
        message_hub=MessageHub.get_instance('soak'),
        logger=MMLogger.get_instance('soak', log_level='ERROR'),
    )
    overrides = [
        {},
        dict(gradient=PhantomGradient(steps=1)),
        dict(mode=Unrolled(2)),
        dict(solver=PicardSolver(max_evals=3)),
    ]

    def step(number: int) -> None:
        runner.iter = number
        images = torch.rand(1 + number % 3, 3, 4, 4 + number % 4)
        for hook in hooks:
            hook.before_train_iter(runner, number)
        with layer.using(**overrides[number % len(overrides)]):
            losses = model(images, mode='loss')
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        for hook in hooks:
            hook.after_train_iter(runner, number)
        if number % 5 == 0:
            model.eval()
            with torch.no_grad():
                model(images)
            model.train()
        if number % 50 == 0:  # an iteration that fails
            with contextlib.suppress(RuntimeError):
                hooks[0].before_train_iter(runner, number)
                model(images.double(), mode='loss')

    for hook in hooks:
        hook.before_train(runner)
    result = grows(step, n_steps, model)
    for hook in hooks:
        hook.after_train(runner)
    return result


def build(n_builds: int) -> tuple[dict[str, int], list[str]]:
    """Builds, copies, uses and drops models of several kinds."""
    torch.manual_seed(0)
    kinds = [
        {},
        dict(dropout=0.2, with_cp=True),
        dict(initial_guess=dict(type='PreviousGuess')),
        dict(compile_cell=dict(backend='eager')),
        dict(frozen_stages=1, norm_eval=True),
    ]

    def step(number: int) -> None:
        kind = kinds[number % len(kinds)]
        model = MDEQ(arch=ARCH, forward_solver=SOLVER, **kind)
        other = copy.deepcopy(model)
        other.load_state_dict(model.state_dict())
        images = torch.rand(1, 3, 8, 8)
        if 'compile_cell' not in kind:
            with torch.no_grad():
                model.eval()(images)
            outputs = other.train()(images.requires_grad_())
            outputs[0].sum().backward()
        other.switch_to_deploy()

    return grows(step, n_builds)
