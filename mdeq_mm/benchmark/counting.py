"""How often a layer evaluates its cell, and how much autograd saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..deq import EquilibriumLayer, ForwardPass, Solution


@dataclass
class Work:
    """What a layer did.

    Attributes:
        evaluations (int): Evaluations of its cell.
        products (int): Vector-Jacobian products of its adjoint solves.
    """

    evaluations: int = 0
    products: int = 0


@contextmanager
def count_work(layer: EquilibriumLayer) -> Iterator[Work]:
    """Counts evaluations and products while the context lasts.

    Args:
        layer (EquilibriumLayer): The layer.

    Yields:
        Work: The counts so far.
    """
    work = Work()
    counting = True

    def count_evaluation(*args: object) -> None:
        work.evaluations += 1

    def count_products(adjoint: Solution) -> None:
        # The backward of a pass may come after the context.
        if counting:
            work.products += _n_calls(adjoint)

    def observe(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        forward_pass.register_adjoint_hook(count_products)

    evaluating = layer.cell.register_forward_hook(count_evaluation)
    try:
        with evaluating, layer.register_pass_hook(observe):
            yield work
    finally:
        counting = False


def _n_calls(solution: Solution) -> int:
    """Returns how often a solve has called its functions."""
    if solution.n_reduced is None:
        return len(solution.trace)
    # Samples that wait for full precision have no row of the trace meanwhile.
    in_full = solution.n_evals - solution.n_reduced
    return sum(max(n.tolist(), default=0) for n in (solution.n_reduced, in_full))


@contextmanager
def count_saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Counts the bytes that autograd saves, without those of the parameters.

    Memory that several saved tensors share counts once.

    Args:
        model (nn.Module): The model whose parameters do not count.

    Yields:
        list[int]: An empty list. It holds the bytes when the context has ended.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            # Kept, so that no other storage gets its address.
            storages[storage.data_ptr()] = storage
        return tensor

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(storage.nbytes() for storage in storages.values()))
