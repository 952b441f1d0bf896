"""Where solves start: that of the equilibrium, and that of its adjoint system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

import torch
from mmengine.registry import TASK_UTILS
from torch import Tensor, nn

from .solvers import Solution
from .state import StateLayout


class InitialGuess(nn.Module, ABC):
    """Gives an :class:`EquilibriumLayer` the state its solve starts from.

    A good guess saves evaluations. It changes neither the tolerance nor, where the
    equilibrium is unique, what is found. The unrolled mode starts from zero all the
    same.
    """

    @abstractmethod
    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        """Returns the guess.

        Args:
            injections (Sequence[Tensor]): The injections of the solve, one
                ``(B, *shape_i)`` per feature map.
            layout (StateLayout): Layout of the state.
            dtype (torch.dtype): Dtype of the state.

        Returns:
            Tensor: ``(B, N)``, with a graph if it can be trained. The solve itself is
            never differentiated with respect to it.
        """

    def update(self, state: Tensor, layout: StateLayout) -> None:
        """Takes note of what a solve has found.

        Args:
            state (Tensor): The state ``(B, N)``, without a graph.
            layout (StateLayout): Layout of the state.
        """

    def reset(self) -> None:
        """Forgets earlier solves."""


def zero_state(
    injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
) -> Tensor:
    """Returns the state zero, ``(B, N)``."""
    first = injections[0]
    return first.new_zeros(first.shape[0], layout.numel, dtype=dtype)


@TASK_UTILS.register_module()
class ZeroGuess(InitialGuess):
    """Starts from zero, as the MDEQ paper does."""

    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        """Returns zero, ``(B, N)``."""
        return zero_state(injections, layout, dtype)


@TASK_UTILS.register_module()
class PreviousGuess(InitialGuess):
    """Starts from what the solve before has found, for the frames of a video.

    It does so only in inference, that is in evaluation mode without autograd, and only
    if batch size, shapes, dtype and device are those of the solve before. Otherwise it
    starts from zero. It keeps one state, which is in no checkpoint. Training forgets
    it. Call :meth:`reset` where one video ends and another begins.

    What is found then depends, within the tolerance, on the images before. With
    sliding windows or test-time augmentation the solve before is one of another
    picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self._previous: Optional[tuple[Hashable, Tensor]] = None

    def forward(
        self, injections: Sequence[Tensor], layout: StateLayout, dtype: torch.dtype
    ) -> Tensor:
        """Returns the state before, or zero, ``(B, N)``."""
        first = injections[0]
        key = self._key_of(len(first), layout, dtype, first.device)
        # Read once, because another thread may replace it meanwhile.
        previous = self._previous
        if self._is_inference() and previous is not None and previous[0] == key:
            return previous[1]
        return zero_state(injections, layout, dtype)

    def update(self, state: Tensor, layout: StateLayout) -> None:
        """Keeps a copy of the state in inference."""
        if self._is_inference():
            key = self._key_of(len(state), layout, state.dtype, state.device)
            # A copy, because whoever is given the pass may change its state in place.
            self._previous = key, state.clone()

    def reset(self) -> None:
        """Forgets the state."""
        self._previous = None

    def train(self, mode: bool = True) -> PreviousGuess:
        """Switches the mode. Training forgets the state."""
        if mode:
            self.reset()
        return super().train(mode)

    def _is_inference(self) -> bool:
        # A frozen layer is in evaluation mode while the rest of the model trains.
        return not (self.training or torch.is_grad_enabled())

    @staticmethod
    def _key_of(
        batch_size: int, layout: StateLayout, dtype: torch.dtype, device: torch.device
    ) -> Hashable:
        # Tensors made in torch's inference mode cannot be changed outside of it.
        inference_mode = torch.is_inference_mode_enabled()
        return batch_size, layout.shapes, dtype, device, inference_mode


class LearnedGuess(InitialGuess):
    """An initial guess whose parameters a loss of its own trains.

    None of the other losses reaches them, because a solve is never differentiated with
    respect to where it starts. If nothing trained them, several processes would wait
    for their gradients for ever. So a subclass calls :meth:`check_supervision` at the
    beginning of its ``forward``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_supervisors = 0

    @contextmanager
    def supervision(self) -> Iterator[None]:
        """Says, while the context lasts, that something trains the parameters."""
        self._n_supervisors += 1
        try:
            yield
        finally:
            self._n_supervisors -= 1

    def check_supervision(self) -> None:
        """Checks that something trains what can be trained.

        Raises:
            RuntimeError: In training, if a parameter can be trained and nothing does
                it.
        """
        if self._n_supervisors or not (self.training and torch.is_grad_enabled()):
            return
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise RuntimeError(
                f'nothing trains the parameters of {type(self).__name__}: add '
                "initial_guess_loss=dict(type='InitialGuessLossHook') to "
                'default_hooks, or freeze them with requires_grad_(False)'
            )


class AdjointGuess(ABC):
    """Gives an :class:`ImplicitGradient` the state its adjoint solve starts from."""

    @abstractmethod
    def bind(self, solution: Solution) -> Callable[[Tensor], Tensor]:
        """Takes from a solution of the forward pass what backward will need of it.

        Args:
            solution (Solution): The solution, with its inverse Jacobian if the solver
                has one. Do not keep the whole of it.

        Returns:
            Callable: Maps the gradient ``(B, N)``, of unit norm per sample, to the
            start ``(B, N)``.
        """


@TASK_UTILS.register_module()
class GradientGuess(AdjointGuess):
    """Starts from the gradient itself."""

    def bind(self, solution: Solution) -> Callable[[Tensor], Tensor]:
        """Returns the identity."""
        return _identity

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TASK_UTILS.register_module()
class InverseJacobianGuess(AdjointGuess):
    """Starts from the gradient times the inverse Jacobian of the forward solve.

    That is what SHINE shares between the two solves (Ramzi et al., ICLR 2022, section
    2). It needs a forward solver that ends with a low-rank inverse, such as
    :class:`BroydenSolver`, and keeps the history of that solver until backward.
    """

    def bind(self, solution: Solution) -> Callable[[Tensor], Tensor]:
        """Returns the product with the transposed inverse.

        Raises:
            ValueError: If the solution has no inverse Jacobian.
        """
        inverse = solution.inverse_jacobian
        if inverse is None:
            raise ValueError(
                'InverseJacobianGuess needs a forward solver that ends with a low-rank '
                'inverse, such as BroydenSolver; the one that was used has none'
            )

        def start(unit: Tensor) -> Tensor:
            # (I - J^T)^-1 is minus the transposed inverse Jacobian of f(z) - z.
            y = -inverse.apply_transpose(unit)
            # A forward solve that ran away may have left an inverse of no use.
            finite = y.isfinite().all(dim=1, keepdim=True)
            return torch.where(finite, y, unit)

        return start

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def _identity(unit: Tensor) -> Tensor:
    return unit
