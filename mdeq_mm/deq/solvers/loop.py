"""The loop of every solver."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Generator, Iterator
from typing import TYPE_CHECKING, Callable, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from .samples import Samples
from .solution import Solution

if TYPE_CHECKING:
    from .base import FixedPointSolver
    from .low_rank import LowRankInverse
    from .reduced import FixedPointFunction, ReducedFunction

_BROKEN = (
    'The function whose fixed point is sought returned NaN or Inf. The samples '
    'concerned keep the best state before it.'
)

# Between these norms no square that matters leaves the range of float32, or float64.
_LEAST, _MOST = 1e-12, 1e18
_LEAST_DOUBLE, _MOST_DOUBLE = 1e-140, 1e150


def solve(
    solver: FixedPointSolver,
    f: FixedPointFunction,
    z0: Tensor,
    keep: Collection[int] = (),
    restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    reduced: Optional[ReducedFunction] = None,
) -> Solution:
    """Runs a method: see :meth:`FixedPointSolver.solve`, which calls this."""
    if keep and restrict is not None:
        raise ValueError('keep and restrict cannot be given together')
    *_, samples = evaluations(solver, f, z0, keep, restrict, reduced)
    if samples.n_broken > 0:
        warnings.warn(_BROKEN, RuntimeWarning, stacklevel=3)
    return samples.solution()


def pauses(
    solver: FixedPointSolver,
    f: FixedPointFunction,
    z0: Tensor,
    at: Optional[Collection[int]] = None,
    restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    reduced: Optional[ReducedFunction] = None,
) -> Iterator[Solution]:
    """Runs a method with pauses: see :meth:`FixedPointSolver.pauses`."""
    run = evaluations(solver, f, z0, restrict=restrict, reduced=reduced)
    for number, samples in enumerate(run, start=1):
        if at is None or number in at or samples.ended:
            yield samples.solution()
    if samples.n_broken > 0:
        warnings.warn(_BROKEN, RuntimeWarning, stacklevel=2)


# No context may be open where it yields: it would be open in what the caller does.
@torch.no_grad()
def evaluations(
    solver: FixedPointSolver,
    f: FixedPointFunction,
    z0: Tensor,
    keep: Collection[int] = (),
    restrict: Optional[Callable[[Tensor], FixedPointFunction]] = None,
    reduced: Optional[ReducedFunction] = None,
) -> Iterator[Samples]:
    """Runs a method and yields its books after each evaluation, always the same ones.

    Args:
        solver (FixedPointSolver): The method.
        f (Callable): See :meth:`FixedPointSolver.solve`.
        z0 (Tensor): The same.
        keep (Collection[int]): The same.
        restrict (Callable, optional): The same.
        reduced (ReducedFunction, optional): The same.

    Yields:
        Samples: The books. They are closed after the last evaluation.
    """
    if z0.dim() != 2 or not z0.is_floating_point():
        raise ValueError(
            'z0 must be a floating point tensor of shape (B, N), '
            f'got {z0.dtype} of shape {tuple(z0.shape)}'
        )
    z0 = z0.detach().to(torch.promote_types(z0.dtype, torch.float32))
    compact = restrict is not None
    if reduced is None:
        samples = Samples(z0, solver.tol)
        inverse = yield from _iterate(solver, samples, f, keep, restrict)
    else:
        samples = Samples(z0, solver.tol, solver.max_evals, reduced.resolution)
        inverse = yield from _iterate(
            solver, samples, reduced.f, keep, reduced.restrict if compact else None
        )
        if samples.some_wait:
            yield samples
            waited = samples.refine(compact)
            all_waited = samples.n_running == len(waited)
            if all_waited:
                # Its history must not lie next to the one that begins.
                inverse = None
            if restrict is not None:
                f = restrict(samples.rows)
            refined = yield from _iterate(solver, samples, f, keep, restrict)
            if all_waited:
                inverse = refined
            elif inverse is not None:
                inverse = refined and refined.where(waited, inverse)
    samples.close(inverse)
    yield samples


def _iterate(
    solver: FixedPointSolver,
    samples: Samples,
    f: FixedPointFunction,
    keep: Collection[int],
    restrict: Optional[Callable[[Tensor], FixedPointFunction]],
) -> Generator[Samples, None, Optional[LowRankInverse]]:
    """Runs a method in one precision, from an empty memory on.

    It yields the books after each evaluation but the last one.

    Args:
        solver (FixedPointSolver): The method.
        samples (Samples): The books.
        f (Callable): See :meth:`FixedPointSolver.solve`.
        keep (Collection[int]): See :meth:`FixedPointSolver.solve`.
        restrict (Callable, optional): The same.

    Returns:
        LowRankInverse, optional: The approximate inverse Jacobian, if the method has
        one and all samples are in the batch.
    """
    z = samples.best
    device = z.device.type
    interval = solver.check_interval or (1 if device == 'cpu' else 3)
    with torch.autocast(device, enabled=False):
        state = solver.init(z)

    before = samples.n_observed
    for number in range(before + 1, before + solver.max_evals + 1):
        fz = f(z)
        if number == 1:
            refuse_transforms(fz)
        if fz.shape != z.shape:
            raise ValueError(
                f'f must return the shape it is given, {tuple(z.shape)}, '
                f'got {tuple(fz.shape)}'
            )
        # Only f may run in reduced precision, not the solver's own products.
        with torch.autocast(device, enabled=False):
            fz = fz.to(z.dtype)
            g = solver.residual(state, z, fz)
            norm = measure(g, fz, solver.stop_mode)
            candidate = z if solver.returns == 'iterate' else fz
            look = number % interval == 0
            if samples.resolution > 0 and solver.stop_mode == 'abs':
                samples.observe(candidate, norm, look, norms(fz))
            else:
                samples.observe(candidate, norm, look)
            if number in keep:
                samples.keep(number, z, norm)
        if number == before + solver.max_evals or samples.n_running == 0:
            break
        yield samples
        with torch.autocast(device, enabled=False):
            if restrict is not None:
                rows = samples.compact()
                if rows is not None:
                    state.select(rows)
                    z, fz, g = z[rows], fz[rows], g[rows]
                    f = restrict(samples.rows)
            state.active = samples.active
            z = samples.freeze(solver.step(state, z, fz, g))
            # They must not lie next to what f computes.
            del candidate, fz, g

    with torch.autocast(device, enabled=False):
        return None if samples.some_left else solver.inverse_jacobian(state)


def refuse_transforms(x: Tensor) -> None:
    """Refuses what would record a solve, or differentiate it by its steps.

    Args:
        x (Tensor): What an evaluation in the solve has returned.

    Raises:
        RuntimeError: If ``torch.jit.trace`` records, as the older ONNX exporter has it
            do, if ``torch.export`` does, if ``x`` has a tangent of forward-mode
            differentiation, or if it stands for other tensors in a transform of
            ``torch.func``.
    """
    is_tracing = torch.jit.is_tracing  # type: ignore[attr-defined]
    # Older versions of torch have no way to ask for torch.export.
    is_exporting = getattr(torch.compiler, 'is_exporting', is_tracing)
    if is_tracing() or is_exporting():
        raise RuntimeError(
            'torch.jit.trace cannot record a solve, nor can torch.export or '
            'torch.onnx.export: how many evaluations it takes is decided anew for '
            'every input. Export with a fixed number of evaluations by '
            'tools/deployment/export.py, or record the unrolled mode: '
            '`with layer.using(mode=Unrolled(num_layers)): torch.jit.trace(...)`'
        )
    # torch has no public way to ask for its transforms. Older versions have not this
    # way to ask for the one of batched gradients, and end with a message of their own.
    functorch = torch._C._functorch  # noqa: SLF001
    is_wrapped = functorch.is_functorch_wrapped_tensor
    is_batched = getattr(functorch, 'is_legacy_batchedtensor', is_wrapped)
    has_tangent = forward_ad.unpack_dual(x).tangent is not None
    if is_wrapped(x) or is_batched(x) or has_tangent:
        raise RuntimeError(
            'forward-mode differentiation, the transforms of torch.func and batched '
            'gradients do not work through a solve. Use torch.autograd.grad or '
            'backward, or the unrolled mode: `layer.using(mode=Unrolled(num_layers))`'
        )


def norms(x: Tensor) -> Tensor:
    """Returns the Euclidean norm of each sample of ``x``, ``(B, N)``, as ``(B,)``.

    Squares of huge and of tiny numbers are out of the range of their dtype. A norm is
    infinite or NaN only if ``x`` is, and zero only if ``x`` is.
    """
    double = x.dtype == torch.float64
    on_cpu = x.device.type == 'cpu'
    if not (double or on_cpu):
        return _wide_norms(x)
    norm = torch.linalg.vector_norm(x, dim=1)
    least, most = (_LEAST_DOUBLE, _MOST_DOUBLE) if double else (_LEAST, _MOST)
    # On a CPU the other ways take several times as long. Another device would have to
    # send the norms to the host to know that it does not need them.
    if on_cpu and all(least < value < most for value in norm.tolist()):
        return norm
    # The others are measured as they would be by themselves.
    in_range = (norm > least) & (norm < most)
    return torch.where(in_range, norm, _scaled_norms(x) if double else _wide_norms(x))


def measure(
    g: Tensor,
    fz: Tensor,
    stop_mode: str,
    norms_of: Callable[[Tensor], Tensor] = norms,
) -> Tensor:
    """Returns the residuals ``(B,)`` in the measure of ``stop_mode``.

    Args:
        g (Tensor): ``f(z) - z``, ``(B, N)``.
        fz (Tensor): ``f(z)``, ``(B, N)``.
        stop_mode (str): ``'abs'`` or ``'rel'``, see :class:`FixedPointSolver`.
        norms_of (Callable): Norm of each sample, from ``(B, N)`` to ``(B,)``. Defaults
            to :func:`norms`, which decides by values. An exporter cannot record that.
    """
    if stop_mode == 'abs':
        return norms_of(g)
    return norms_of(g) / (norms_of(fz) + 1e-8)


def _scaled_norms(x: Tensor) -> Tensor:
    """Returns the norms of the samples of ``x``, each divided by its largest number."""
    # A sample without numbers has no largest one, hence the zero.
    largest = F.pad(x.abs(), (0, 1)).amax(dim=1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    norm = torch.linalg.vector_norm(x / scale[:, None], dim=1)
    most = torch.finfo(x.dtype).max
    return torch.where(norm.isfinite(), (norm * scale).clamp(max=most), norm)


def _wide_norms(x: Tensor) -> Tensor:
    """Returns the norms of the samples of ``x``, with squares in float64."""
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    # A norm can be larger than the largest number of float32.
    most = torch.finfo(x.dtype).max
    return torch.where(norm.isfinite(), norm.clamp(max=most), norm).to(x.dtype)
