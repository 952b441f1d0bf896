"""Plots how the equilibrium of test images converges, one line an image."""

import argparse
from pathlib import Path

import torch

from mdeq_mm.deq import EquilibriumLayer
from mdeq_mm.utils.launch import add_cfg_options, load_config, load_model
from mdeq_mm.visualization import plot_convergence


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', default='convergence.png', help='default: %(default)s')
    parser.add_argument(
        '--num-samples', type=int, default=16, help='images; default: %(default)s'
    )
    parser.add_argument(
        '--max-evals',
        type=int,
        default=40,
        help='evaluations to show, whatever the budget and tolerance of the config; '
        'default: %(default)s',
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    model, loader = load_model(cfg, args.checkpoint)
    (layer,) = (m for m in model.modules() if isinstance(m, EquilibriumLayer))
    solver = layer.solver
    tol, max_evals, stop_mode = solver.tol, solver.max_evals, solver.stop_mode
    solver.tol, solver.max_evals = 0.0, args.max_evals
    traces = []
    layer.register_forward_hook(
        lambda module, inputs, output: traces.append(output[1].trace)
    )
    with torch.no_grad():
        for batch in loader:
            model.test_step(batch)
            if sum(trace.shape[1] for trace in traces) >= args.num_samples:
                break
    measures = {
        'abs': r'absolute residual $\|f(z)-z\|$',
        'rel': r'relative residual $\|f(z)-z\|\,/\,\|f(z)\|$',
    }
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    plot_convergence(
        torch.cat(traces, dim=1)[:, : args.num_samples],
        args.out,
        title=f'{Path(args.config).stem}, {type(solver).__name__}',
        tol=tol or None,
        max_evals=max_evals,
        measure=measures[stop_mode],
    )
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
