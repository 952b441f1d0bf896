"""Compares ways to differentiate the equilibrium of a trained model.

For one batch of test images and their labels: work, memory saved for backward and the
cosine between the gradient of all parameters and the exact one.
"""

import argparse

import torch
from mmengine.model import BaseModel
from torch import Tensor

from mdeq_mm.deq import (
    BroydenSolver,
    EquilibriumGradient,
    EquilibriumLayer,
    ImplicitGradient,
    PhantomGradient,
    UnrolledGradient,
)
from mdeq_mm.utils.launch import add_cfg_options, load_config, load_model
from mdeq_mm.utils.measure import count_saved_bytes, count_work


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--max-evals',
        type=int,
        default=200,
        help='budget of both solves of the exact gradient; default: %(default)s',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def step(
    model: BaseModel, layer: EquilibriumLayer, data: dict
) -> tuple[Tensor, int, int, int]:
    """Returns gradient, evaluations, products of the adjoint solve, and saved bytes."""
    model.zero_grad()
    with count_work(layer) as work:
        with count_saved_bytes(model) as saved:
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
    gradient = torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )
    return gradient, work.evaluations, work.products, saved[0]


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    model, loader = load_model(cfg, args.checkpoint)
    (layer,) = (m for m in model.modules() if isinstance(m, EquilibriumLayer))
    data = model.data_preprocessor(next(iter(loader)), training=True)
    configured = layer.solver, layer.gradient

    tight = BroydenSolver(args.max_evals, tol=1e-7, memory=args.max_evals)
    layer.solver, layer.gradient = tight, ImplicitGradient(tight)
    exact = step(model, layer, data)[0]

    solver, gradient = configured
    compared: dict[str, EquilibriumGradient] = {
        'as configured': gradient,
        'phantom, 5 steps, damping 0.5': PhantomGradient(5, 0.5),
        'phantom, 5 steps, damping 0.7': PhantomGradient(5, 0.7),
        'Jacobian-free': PhantomGradient(1, 1.0),
        f'unrolled {solver.max_evals} times': UnrolledGradient(solver.max_evals),
    }
    if isinstance(solver, BroydenSolver):
        if isinstance(gradient, ImplicitGradient):
            compared['as configured, from the inverse'] = ImplicitGradient(
                gradient.solver, init='inverse'
            )
        for n in (0, 1, 5):
            # The first product only tells the residual of the start.
            refinement = BroydenSolver(n + 1, tol=0.0) if n else None
            compared[f'SHINE, {n} refinements'] = ImplicitGradient(
                refinement, init='inverse'
            )
    layer.solver = solver
    print(f'forward: {solver}\nas configured: {type(gradient).__name__}')
    print(f'{"gradient":32}{"evaluations":>12}{"products":>10}{"MiB":>8}{"cosine":>9}')
    for name, layer.gradient in compared.items():
        found, n_evals, n_products, n_bytes = step(model, layer, data)
        cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0).item()
        print(
            f'{name:32}{n_evals:12}{n_products:10}{n_bytes / 2**20:8.1f}{cosine:9.4f}'
        )


if __name__ == '__main__':
    main()
