"""Models that have been used for long are as fresh ones."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn

from mdeq_mm.deq import BroydenSolver
from mdeq_mm.models import MDEQ

ARCH = dict(channels=(8, 16), num_groups=4, expansion=1)
N_THREADS = 8
# Of a compiled cell, which may sum in another order.
ROUNDING = 1e-5


def make(**kwargs: Any) -> MDEQ:
    """Makes a model with a calm cell, and always the same weights."""
    torch.manual_seed(0)
    solver = BroydenSolver(max_evals=12, tol=1e-4)
    model = MDEQ(arch=ARCH, forward_solver=solver, **kwargs).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.1, 0.3)
                module.bias.normal_()
    return model


def predict(model: MDEQ, image: Tensor, autocast: bool = False) -> tuple[Tensor, ...]:
    """Returns the features of an image."""
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        return model(image)


def difference(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Returns the largest relative difference of a feature map."""
    pairs = [(a, e) for a, e in zip(actual, expected) if not torch.equal(a, e)]
    return max((float((a - e).norm() / e.norm()) for a, e in pairs), default=0.0)


def use_sizes(n_sizes: int, seed: int, compiled: bool) -> tuple[Counter, list[str]]:
    """Predicts images of many sizes with one model, and each with a fresh one.

    Args:
        n_sizes (int): Number of sizes.
        seed (int): Seed of the sizes.
        compiled (bool): Whether the cell of the used model is compiled. Its results may
            then differ by rounding; without it they may not differ.

    Returns:
        tuple[Counter, list[str]]: Figures, and what went wrong.
    """
    rng = random.Random(seed)
    counts, faults = Counter(), []
    setting = dict(backend='aot_eager') if compiled else None
    used = make(compile_cell=setting)
    sizes = [(h, w) for h in range(9, 80) for w in range(9, 80)]
    for height, width in rng.sample(sizes, n_sizes):
        image = torch.rand(rng.randint(1, 3), 3, height, width)
        error = difference(predict(used, image), predict(make(), image))
        counts['sizes'] += 1
        counts['largest difference'] = max(counts['largest difference'], error)
        if not error <= (ROUNDING if compiled else 0):
            faults.append(f'{tuple(image.shape)} differs by {error:.1e}')
    return counts, faults


def use_threads(n_predictions: int, seed: int) -> tuple[Counter, list[str]]:
    """Predicts in eight threads with one model, images of mixed sizes.

    One thread is under autocast, and one has a solver of its own.

    Args:
        n_predictions (int): Predictions of each thread.
        seed (int): Seed of the images.

    Returns:
        tuple[Counter, list[str]]: Figures, and what went wrong.
    """
    rng = random.Random(seed)
    model, barrier = make(), Barrier(N_THREADS)
    layer = model.equilibrium
    images = [
        torch.rand(1 + n % 3, 3, rng.randint(9, 40), rng.randint(9, 40))
        for n in range(N_THREADS)
    ]

    def serve(number: int) -> list[tuple[Tensor, ...]]:
        solver = BroydenSolver(max_evals=3) if number == 1 else None
        with layer.using(solver=solver):
            return [predict(model, images[number], number == 0)]

    expected = [serve(number)[0] for number in range(N_THREADS)]

    def thread(number: int) -> int:
        barrier.wait()
        return sum(
            difference(serve(number)[0], expected[number]) != 0
            for _ in range(n_predictions)
        )

    with ThreadPoolExecutor(N_THREADS) as pool:
        wrong = list(pool.map(thread, range(N_THREADS)))
    counts = Counter({'threads': N_THREADS, 'predictions': N_THREADS * n_predictions})
    faults = [f'thread {n}: {count} wrong' for n, count in enumerate(wrong) if count]
    if difference(predict(model, images[2]), predict(make(), images[2])):
        faults.append('the model afterwards is not as a fresh one')
    return counts, faults
