"""Metrics that look at the equilibrium instead of at the predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ..deq import EquilibriumLayer, spectral_radius
from ..deq.layer import Solve


class EquilibriumMetric(BaseMetric):
    """Base of the metrics that measure every solve of a validation or test.

    They stand in ``val_evaluator`` next to the metrics of the predictions and need
    :class:`ImplicitGradientHook` among the ``custom_hooks``, which shows them the
    model. Where one image takes several solves, as in sliding windows, its value is the
    mean over them. Images for which nothing is solved, in the shallow mode, count only
    where a metric says so.

    Args:
        collect_device (str): Where processes exchange results, ``'cpu'`` or ``'gpu'``.
            Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, the one of the
            class.
    """

    def __init__(
        self, collect_device: str = 'cpu', prefix: Optional[str] = None
    ) -> None:
        super().__init__(collect_device, prefix)
        self._observed = False
        self._values: list[Tensor] = []

    def observe(self, layers: Sequence[EquilibriumLayer]) -> None:
        """Starts to measure the solves of these layers in evaluation mode."""
        if self._observed:
            return
        self._observed = True

        def hook(layer: EquilibriumLayer, solve: Solve) -> None:
            if not layer.training:
                values = self.measure(layer, solve)
                if values is not None:
                    self._values.append(values)

        for layer in layers:
            layer.register_solve_hook(hook)

    @abstractmethod
    def measure(self, layer: EquilibriumLayer, solve: Solve) -> Optional[Tensor]:
        """Returns what is measured of each sample, ``(B, n)``, or None for nothing."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Takes over the values of one batch.

        Raises:
            RuntimeError: If the model has not been shown.
        """
        if not self._observed:
            raise RuntimeError(
                f"{type(self).__name__} needs dict(type='ImplicitGradientHook') in "
                'custom_hooks'
            )
        if self._values:
            values = torch.stack(self._values).mean(0)
            self._values.clear()
            self.results.extend(values.tolist())


@METRICS.register_module()
class SpectralRadius(EquilibriumMetric):
    """Spectral radius of the Jacobian of the cell at the state of each image.

    Below 1 plain iteration converges to the equilibrium nearby. The names are
    ``spectral_radius/mean`` and ``spectral_radius/max``. Shallow states count too.

    Args:
        num_power_iters (int): See :func:`spectral_radius`. Defaults to 100.
        krylov_dim (int): The same; every image costs the sum of the two in
            vector-Jacobian products. Defaults to 40.
        **kwargs: See :class:`EquilibriumMetric`.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> val_evaluator = [
        ...     dict(type='IoUMetric', iou_metrics=['mIoU']),
        ...     dict(type='SpectralRadius'),
        ... ]
    """

    default_prefix = 'spectral_radius'

    def __init__(
        self, num_power_iters: int = 100, krylov_dim: int = 40, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value, least in (
            ('num_power_iters', num_power_iters, 0),
            ('krylov_dim', krylov_dim, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f'{name} must be an integer of at least {least}, got {value!r}'
                )
        self.num_power_iters = num_power_iters
        self.krylov_dim = krylov_dim

    def measure(self, layer: EquilibriumLayer, solve: Solve) -> Tensor:
        z, fz = solve.linearize()
        radius = spectral_radius(fz, z, self.num_power_iters, self.krylov_dim)
        return radius.unsqueeze(1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        radii = torch.tensor(results)
        return dict(mean=radii.mean().item(), max=radii.max().item())


@METRICS.register_module()
class SolverStatistics(EquilibriumMetric):
    """How the solves of a validation or test converge.

    The names, after the prefix ``solver/``: ``evals`` and ``residual``, means over the
    images; ``converged``, the share of images within the solver's tolerance; for each
    of ``tolerances`` as ``evals_to_0.01`` the mean evaluations until the residual was
    that small, with the whole budget where it never was, and as ``reached_0.01`` the
    share of images where it was; for each of ``curve_at`` as ``residual_at_5`` the
    mean over the images of the smallest residual up to that evaluation. Nothing is
    reported in the shallow mode.

    Args:
        tolerances (Sequence[float]): Residuals in the measure of the solver.
            Defaults to (1e-1, 1e-2, 1e-3).
        curve_at (Sequence[int]): Evaluations, counted from 1. Defaults to ().
        **kwargs: See :class:`EquilibriumMetric`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    default_prefix = 'solver'

    def __init__(
        self,
        tolerances: Sequence[float] = (1e-1, 1e-2, 1e-3),
        curve_at: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not all(tolerance > 0 for tolerance in tolerances):
            raise ValueError(f'tolerances must be positive, got {tuple(tolerances)}')
        if not all(isinstance(n, int) and n >= 1 for n in curve_at):
            raise ValueError(
                f'curve_at must hold integers of at least 1, got {tuple(curve_at)}'
            )
        self.tolerances = tuple(tolerances)
        self.curve_at = tuple(curve_at)

    def measure(self, layer: EquilibriumLayer, solve: Solve) -> Optional[Tensor]:
        solution = solve.solution
        if solution is None:
            return None
        best = solution.trace.cummin(0).values
        columns = [solution.n_evals, solution.residual, solution.converged]
        for tolerance in self.tolerances:
            above = (best > tolerance).sum(0)
            reached = above < len(best)
            budget = torch.full_like(above, layer.solver.max_evals)
            columns += [torch.where(reached, above + 1, budget), reached]
        columns += [best[min(n, len(best)) - 1] for n in self.curve_at]
        return torch.stack([column.float() for column in columns], 1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        if not results:
            return dict()
        names = ['evals', 'residual', 'converged']
        for tolerance in self.tolerances:
            names += [f'evals_to_{tolerance:g}', f'reached_{tolerance:g}']
        names += [f'residual_at_{n}' for n in self.curve_at]
        return dict(zip(names, torch.tensor(results).mean(0).tolist()))
