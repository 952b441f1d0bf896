"""Metrics that look at the equilibrium instead of at the predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ..deq import Equilibrium, EquilibriumLayer, ForwardPass, spectral_radius
from ..deq.checks import check_int, check_number


class EquilibriumMetric(BaseMetric):
    """Base of the metrics that measure the forward passes of a validation or test.

    They stand in ``val_evaluator`` next to the metrics of the predictions.
    :class:`ImplicitGradientHook`, which must be among the hooks, shows them the model.
    If one image takes several passes, as with sliding windows, its value is the mean
    over them. Unrolled passes count only where a metric says so.

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
        self._has_observed = False
        self._values: list[Tensor] = []

    def reset(self) -> None:
        """Forgets what a validation that was interrupted has left behind."""
        self._values.clear()
        self.results.clear()

    @contextmanager
    def observing(self, layers: Sequence[EquilibriumLayer]) -> Iterator[None]:
        """Measures the passes of these layers while the context lasts.

        It takes in the images of one batch: values of an earlier batch that
        :meth:`process` has not taken over are dropped.

        Args:
            layers (Sequence[EquilibriumLayer]): The layers. Those in training mode
                are left out.
        """
        self._has_observed = True
        self._values.clear()

        def measure(layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
            values = None if layer.training else self.measure(layer, forward_pass)
            if values is not None:
                self._values.append(values)

        with ExitStack() as handles:
            for layer in layers:
                handles.enter_context(layer.register_pass_hook(measure))
            yield

    @abstractmethod
    def measure(
        self, layer: EquilibriumLayer, forward_pass: ForwardPass
    ) -> Optional[Tensor]:
        """Returns what is measured of each sample, ``(B, n)``, or None for nothing."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Takes over the values of one batch.

        Raises:
            RuntimeError: If the metric has never observed a layer.
        """
        if not self._has_observed:
            raise RuntimeError(
                f"{type(self).__name__} needs dict(type='ImplicitGradientHook') in "
                'default_hooks'
            )
        if self._values:
            values = torch.stack(self._values).mean(0)
            self._values.clear()
            self.results.extend(values.tolist())


@METRICS.register_module()
class SpectralRadius(EquilibriumMetric):
    """Spectral radius of the Jacobian of the cell at the state of each image.

    Below 1 plain iteration converges to the equilibrium nearby. The names are
    ``spectral_radius/mean`` and ``spectral_radius/max``. Unrolled passes count too.

    Args:
        num_power_iters (int): See :func:`spectral_radius`. Defaults to 100.
        krylov_dim (int): The same. Each image costs the sum of the two in
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
        check_int('num_power_iters', num_power_iters, 0)
        check_int('krylov_dim', krylov_dim, 1)
        self.num_power_iters = num_power_iters
        self.krylov_dim = krylov_dim

    def measure(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> Tensor:
        """Returns the spectral radius, ``(B, 1)``."""
        z, fz = forward_pass.linearize()
        radius = spectral_radius(fz, z, self.num_power_iters, self.krylov_dim)
        return radius.unsqueeze(1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Returns mean and maximum over the images."""
        radii = torch.tensor(results)
        return dict(mean=radii.mean().item(), max=radii.max().item())


@METRICS.register_module()
class SolverStatistics(EquilibriumMetric):
    """How the solves of a validation or test converge.

    The names, after the prefix ``solver/``, are

    - ``evals`` and ``residual``: means over the images;
    - ``converged``: share of the images within the solver's tolerance;
    - ``evals_to_0.01`` for each of ``tolerances``: mean evaluations until the residual
      was that small, with the whole budget where it never was;
    - ``reached_0.01`` for each of ``tolerances``: share of the images where it was;
    - ``residual_at_5`` for each of ``curve_at``: mean over the images of the smallest
      residual up to that evaluation.

    Nothing is reported in the unrolled mode.

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
        for tolerance in tolerances:
            check_number('tolerances', tolerance, above=0)
        for number in curve_at:
            check_int('curve_at', number, 1)
        self.tolerances = tuple(tolerances)
        self.curve_at = tuple(curve_at)

    def measure(
        self, layer: EquilibriumLayer, forward_pass: ForwardPass
    ) -> Optional[Tensor]:
        """Returns one column per name, ``(B, n)``, or None for an unrolled pass."""
        solution, mode = forward_pass.solution, forward_pass.mode
        if solution is None or not isinstance(mode, Equilibrium):
            return None
        best = solution.trace.cummin(0).values
        columns = [solution.n_evals, solution.residual, solution.converged]
        for tolerance in self.tolerances:
            above = (best > tolerance).sum(0)
            reached = above < len(best)
            budget = torch.full_like(above, mode.solver.max_evals)
            columns += [torch.where(reached, above + 1, budget), reached]
        columns += [best[min(n, len(best)) - 1] for n in self.curve_at]
        return torch.stack([column.float() for column in columns], 1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Returns the means over the images by name."""
        if not results:
            return dict()
        names = ['evals', 'residual', 'converged']
        for tolerance in self.tolerances:
            names += [f'evals_to_{tolerance:g}', f'reached_{tolerance:g}']
        names += [f'residual_at_{n}' for n in self.curve_at]
        return dict(zip(names, torch.tensor(results).mean(0).tolist()))
