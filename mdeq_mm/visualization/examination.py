"""How the solve of one image goes, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from ..deq import (
    Equilibrium,
    EquilibriumLayer,
    FixedPointFunction,
    ForwardPass,
    ImplicitGradient,
    Solution,
    StateLayout,
    spectral_radius,
)
from ..deq.cell_function import CellFunction
from ..deq.solvers.loop import measure
from .residuals import residuals_by_place


class Step(NamedTuple):
    """A state on the way to the equilibrium.

    Attributes:
        name (str): What it is: what an evaluation has returned, or the result.
        features (tuple[np.ndarray, ...]): Its feature maps, one ``(C, H, W)`` per
            branch.
        residual (np.ndarray): Residual at each place of the finest feature map,
            ``(h, w)``; see :func:`residuals_by_place`.
    """

    name: str
    features: tuple[np.ndarray, ...]
    residual: np.ndarray


@dataclass(frozen=True, eq=False)
class Examination:
    """How the solve of one image went.

    Attributes:
        mode (Equilibrium): Solver and gradient.
        solution (Solution): What the solver found, of this one sample.
        traces (Tensor): Residual of each evaluation in the measure of the solver: that
            of the whole state in the first column, then that of each branch,
            ``(n, 1 + n_branches)``.
        steps (tuple[Step, ...]): The evaluations 1, 2, 4, 8 and so on. The last step is
            the state that the solver returned.
        image (np.ndarray, optional): What the model sees, RGB, uint8, ``(H, W, 3)``.
        radius (float, optional): Spectral radius of the Jacobian at that state.
        adjoint (Solution, optional): Solution of the adjoint system there, for a
            gradient of random direction. None without one, as with
            :class:`PhantomGradient`.
    """

    mode: Equilibrium
    solution: Solution
    traces: Tensor
    steps: tuple[Step, ...]
    image: Optional[np.ndarray] = None
    radius: Optional[float] = None
    adjoint: Optional[Solution] = None

    @property
    def branches(self) -> list[str]:
        """A name for each branch: its number and its size."""
        shapes = [feature.shape for feature in self.steps[-1].features]
        return [
            f'branch {number}: {channels} x {height}x{width}'
            for number, (channels, height, width) in enumerate(shapes)
        ]


@torch.no_grad()
def examine(
    layer: EquilibriumLayer,
    forward_pass: ForwardPass,
    sample: int = 0,
    image: Optional[np.ndarray] = None,
    linearize: bool = False,
) -> Examination:
    """Solves for one sample of a forward pass once more and looks at each evaluation.

    Masks and weights are those of the pass, and so are solver, gradient and initial
    guess. An unrolled pass is solved as the layer is configured. Hooks and metrics see
    nothing of it.

    Args:
        layer (EquilibriumLayer): The layer of the pass.
        forward_pass (ForwardPass): A pass over images, whose feature maps are
            ``(B, C_i, H_i, W_i)``.
        sample (int): Number of the sample in its batch. Defaults to 0.
        image (np.ndarray, optional): What the model sees, RGB, uint8, ``(H, W, 3)``.
            Defaults to None.
        linearize (bool): Whether to find the spectral radius and the adjoint solution,
            too. That takes 140 vector-Jacobian products and the adjoint solve, and
            draws from the default generator of the device. Defaults to False.

    Returns:
        Examination: What was seen.

    Raises:
        ValueError: If the feature maps are not of images.
    """
    mode = forward_pass.mode
    if not isinstance(mode, Equilibrium):
        mode = layer.configured
    f, layout = forward_pass.f, forward_pass.layout
    assert isinstance(f, CellFunction)  # a layer makes no others
    rows = torch.tensor([sample], device=forward_pass.guess.device)
    f = f.restrict(rows)
    recorder = _Recorder(f, layout, mode.solver.stop_mode)
    guess = forward_pass.guess.detach()[rows]
    single = ForwardPass(recorder, layout, guess, mode, state=guess)
    solution = single.solution = mode.solve(single)
    single.f, single.state = f, solution.state
    end = recorder.step('the result', solution.state, f(solution.state))
    radius, adjoint = _linear_part(single, mode) if linearize else (None, None)
    return Examination(
        mode,
        replace(solution, inverse_jacobian=None),
        torch.stack(recorder.rows).nan_to_num(torch.inf, torch.inf).cpu(),
        (*recorder.steps, end),
        image,
        radius,
        adjoint,
    )


class _Recorder:
    """``f`` of one sample, which takes down what passes through it.

    Args:
        f (Callable): The function.
        layout (StateLayout): Layout of the state.
        stop_mode (str): Measure of the residuals.
    """

    def __init__(
        self, f: FixedPointFunction, layout: StateLayout, stop_mode: str
    ) -> None:
        self.rows: list[Tensor] = []
        self.steps: list[Step] = []
        self._f = f
        self._layout = layout
        self._stop_mode = stop_mode

    def __call__(self, z: Tensor) -> Tensor:
        fz = self._f(z)
        before, after = (x.split(self._layout.sizes, dim=1) for x in (z, fz))
        pairs = [(z, fz), *zip(before, after)]
        row = [measure(new - old, new, self._stop_mode) for old, new in pairs]
        self.rows.append(torch.cat(row))
        number = len(self.rows)
        if number & (number - 1) == 0:  # a power of two
            self.steps.append(self.step(f'evaluation {number}', z, fz, shown=fz))
        return fz

    def step(
        self, name: str, z: Tensor, fz: Tensor, shown: Optional[Tensor] = None
    ) -> Step:
        """Makes a step of an evaluation; ``shown`` are its features, ``z`` if None."""
        features = self._layout.unpack(z if shown is None else shown)
        return Step(
            name,
            tuple(feature[0].float().cpu().numpy() for feature in features),
            residuals_by_place(self._layout, z, fz)[0].float().cpu().numpy(),
        )


def _linear_part(
    forward_pass: ForwardPass, mode: Equilibrium
) -> tuple[float, Optional[Solution]]:
    """Returns spectral radius and adjoint solution at the solution of a pass."""
    z, fz = forward_pass.linearize()
    radius = spectral_radius(fz, z).item()
    if isinstance(mode.gradient, ImplicitGradient):
        attached = mode.gradient.attach(forward_pass)
        torch.autograd.grad(attached, z, torch.randn_like(fz))
    return radius, forward_pass.adjoint
