"""The equilibrium layer: where cell, mode and initial guess meet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .builder import build
from .cell import Cell
from .cell_function import CellFunction
from .checks import check_choice
from .compile import CellCompiler
from .forward_pass import EquilibriumOutput, ForwardPass
from .gradients import EquilibriumGradient
from .initial_guesses import InitialGuess
from .local import LocalStack
from .modes import Equilibrium, Mode, Unrolled
from .solvers import FixedPointSolver
from .state import StateLayout

PassHook = Callable[['EquilibriumLayer', ForwardPass], Any]


@dataclass(eq=False)
class _Override:
    """What :meth:`EquilibriumLayer.using` replaces; None leaves a setting alone."""

    layer: EquilibriumLayer
    solver: Optional[FixedPointSolver]
    gradient: Optional[EquilibriumGradient]
    mode: Optional[Mode]
    keep: Optional[Collection[int]]
    initial_guess: Optional[InitialGuess]


_OVERRIDES: LocalStack[_Override] = LocalStack()
_OBSERVERS: LocalStack[tuple[EquilibriumLayer, PassHook]] = LocalStack()


class EquilibriumLayer(nn.Module):
    """Returns the joint equilibrium ``z = f(z; x)`` of several feature maps.

    To observe its forward passes, use :meth:`register_pass_hook`. To change its
    settings for a while, use :meth:`using`.

    The mode is part of the state dict, in its metadata: a model that was saved in the
    unrolled mode is in the unrolled mode wherever it is loaded. A state dict without
    that metadata leaves the mode as it is.

    Args:
        cell (Cell): ``f``.
        solver (FixedPointSolver or dict): Solver of the forward pass.
        gradient (EquilibriumGradient or dict): How to differentiate.
        num_layers (int): Applications of ``f`` in the unrolled mode. Defaults to 5.
        initial_guess (InitialGuess or dict): Where the solve starts. Defaults to
            ``dict(type='ZeroGuess')``.
        compile_cell (dict, optional): Arguments of ``torch.compile``, ``dict()`` for
            its defaults, with which the cell is compiled for the evaluations that
            autograd does not record. Defaults to None, not compiled.
        evaluation_dtype (str, optional): ``'bfloat16'`` begins the forward solve in
            bfloat16 and ends it in float32, see :class:`ReducedFunction`; and so the
            adjoint solve of an :class:`ImplicitGradient`, if its tolerance is loose
            enough. States, the arithmetic of the solvers and what autograd records for
            the parameters stay in float32. It has no effect in the unrolled mode, under
            autocast, and on layers in half precision. Defaults to None, all in float32.

    Attributes:
        configured (Equilibrium): Solver and gradient as they were given.
        unrolled (Unrolled): The unrolled mode of ``num_layers`` applications.

    Raises:
        TypeError: If ``cell`` is no :class:`Cell`.
        ValueError: If ``evaluation_dtype`` is another one, or not None in float64.

    Examples:
        >>> import torch
        >>> from mdeq_mm.deq import Cell, EquilibriumLayer, PhantomGradient
        >>> from mdeq_mm.deq import PicardSolver
        >>> class Half(Cell):
        ...     def forward(self, states, injections):
        ...         return (0.5 * states[0] + injections[0],)
        >>> layer = EquilibriumLayer(Half(), PicardSolver(), PhantomGradient())
        >>> features, forward_pass = layer((torch.ones(1, 3),))
        >>> forward_pass.solution.converged
        tensor([True])
        >>> with layer.using(solver=PicardSolver(max_evals=2)):
        ...     int(layer((torch.ones(1, 3),)).forward_pass.solution.n_evals)
        2
    """

    def __init__(
        self,
        cell: Cell,
        solver: Union[FixedPointSolver, dict],
        gradient: Union[EquilibriumGradient, dict],
        num_layers: int = 5,
        initial_guess: Union[InitialGuess, dict] = dict(type='ZeroGuess'),
        compile_cell: Optional[dict] = None,
        evaluation_dtype: Optional[str] = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, Cell):
            raise TypeError(f'cell must be a Cell, got {type(cell).__name__}')
        self.cell = cell
        self.compiler = None if compile_cell is None else CellCompiler(compile_cell)
        self.evaluation_dtype = evaluation_dtype
        self.configured = Equilibrium(
            build(solver, FixedPointSolver, 'forward_solver'),
            build(gradient, EquilibriumGradient, 'gradient'),
        )
        self.unrolled = Unrolled(num_layers)
        self.initial_guess = build(initial_guess, InitialGuess, 'initial_guess')
        self._mode: Mode = self.configured
        self._pass_hooks: OrderedDict[int, PassHook] = OrderedDict()
        self._register_state_dict_hook(_note_mode)

    @property
    def mode(self) -> Mode:
        """What the calling thread gets: the mode, with the overrides of :meth:`using`.

        Setting it sets the mode for good and for every thread.
        """
        mode = self._mode
        for override in self._overrides():
            mode = override.mode or mode
            if isinstance(mode, Equilibrium):
                mode = replace(
                    mode,
                    solver=override.solver or mode.solver,
                    gradient=override.gradient or mode.gradient,
                )
        return mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if not isinstance(mode, Mode):
            raise TypeError(f'mode must be a Mode, got {mode!r}')
        self._mode = mode

    @property
    def evaluation_dtype(self) -> Optional[str]:
        """As it was given; may be set."""
        return self._evaluation_dtype

    @evaluation_dtype.setter
    def evaluation_dtype(self, evaluation_dtype: Optional[str]) -> None:
        check_choice('evaluation_dtype', evaluation_dtype, (None, 'bfloat16'))
        self._evaluation_dtype = evaluation_dtype

    @property
    def trains(self) -> bool:
        """Whether the layer is in training mode and has a parameter to train."""
        return self.training and any(p.requires_grad for p in self.parameters())

    @contextmanager
    def using(
        self,
        *,
        solver: Optional[Union[FixedPointSolver, dict]] = None,
        gradient: Optional[Union[EquilibriumGradient, dict]] = None,
        mode: Optional[Mode] = None,
        keep: Optional[Collection[int]] = None,
        initial_guess: Optional[Union[InitialGuess, dict]] = None,
    ) -> Iterator[None]:
        """Overrides settings in the calling thread while the context lasts.

        What is None stays. Of two contexts that are active at once, the one that began
        last counts. Solver and gradient have no effect in the unrolled mode.

        Args:
            solver (FixedPointSolver or dict, optional): Solver of the forward pass.
            gradient (EquilibriumGradient or dict, optional): How to differentiate.
            mode (Mode, optional): What to do.
            keep (Collection[int], optional): Numbers of the evaluations, counted from
                1, whose iterates stay in the solution while training.
            initial_guess (InitialGuess or dict, optional): Where the solve starts.
        """
        if solver is not None:
            solver = build(solver, FixedPointSolver, 'solver')
        if gradient is not None:
            gradient = build(gradient, EquilibriumGradient, 'gradient')
        if initial_guess is not None:
            initial_guess = build(initial_guess, InitialGuess, 'initial_guess')
        override = _Override(self, solver, gradient, mode, keep, initial_guess)
        with _OVERRIDES.pushed(override):
            yield

    def register_pass_hook(self, hook: PassHook) -> RemovableHandle:
        """Registers a function to be called at the end of every forward pass.

        Args:
            hook (Callable): Called as ``hook(layer, forward_pass)`` with the
                :class:`ForwardPass`. Its result is not used.

        Returns:
            RemovableHandle: A handle whose ``remove()`` takes the hook away. It is a
            context manager, too.
        """
        handle = RemovableHandle(self._pass_hooks)
        self._pass_hooks[handle.id] = hook
        return handle

    @contextmanager
    def observing(self, hook: PassHook) -> Iterator[None]:
        """Calls a function for the passes of the calling thread alone, in a context.

        Args:
            hook (Callable): See :meth:`register_pass_hook`.
        """
        with _OBSERVERS.pushed((self, hook)):
            yield

    def forward(self, injections: Sequence[Tensor]) -> EquilibriumOutput:
        """Finds the equilibrium for the given injections.

        Args:
            injections (Sequence[Tensor]): One ``(B, *shape_i)`` per feature map, of the
                shape of that map.

        Returns:
            EquilibriumOutput: The feature maps ``(B, *shape_i)`` and the record of the
            pass. The maps are in float32 or float64; in a layer whose parameters are in
            half precision, as after ``model.bfloat16()``, they are in that dtype.
        """
        layout = StateLayout.of(injections)
        dtype = torch.promote_types(injections[0].dtype, torch.float32)
        initial_guess = self.initial_guess
        keep: Collection[int] = ()
        for override in self._overrides():
            if override.initial_guess is not None:
                initial_guess = override.initial_guess
            if override.keep is not None:
                keep = override.keep
        guess = initial_guess(injections, layout, dtype)

        f = CellFunction.freeze(self.cell, injections, layout, self.compiler)
        mode = self.mode
        forward_pass = ForwardPass(f, layout, guess, mode, guess)
        if self.evaluation_dtype is not None and mode.takes_reduced:
            forward_pass.reduced = f.reduced(getattr(torch, self.evaluation_dtype))
        # Where a solve starts has no gradient, so the guess does not count.
        differentiate = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*self.cell.parameters(), *injections)
        )
        forward_pass.state = mode.run(
            forward_pass,
            differentiate,
            keep=keep if self.training else (),
            # Samples leave the batch only where nobody asks for more than the result.
            restrict=None if self.training or differentiate else f.restrict,
        )
        if forward_pass.solution is not None:
            initial_guess.update(forward_pass.solution.state, layout)
        observers = [hook for layer, hook in _OBSERVERS.items if layer is self]
        for hook in (*self._pass_hooks.values(), *observers):
            hook(self, forward_pass)
        # Views would keep the whole state alive, and could not be changed in place.
        features = tuple(
            feature.clone(memory_format=torch.contiguous_format)
            for feature in layout.unpack(forward_pass.state.to(f.dtype))
        )
        return EquilibriumOutput(features, forward_pass)

    def _overrides(self) -> list[_Override]:
        return [item for item in _OVERRIDES.items if item.layer is self]

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        unrolled = local_metadata.get('unrolled')
        if unrolled is True:
            self._mode = self.unrolled
        elif unrolled is False and isinstance(self._mode, Unrolled):
            self._mode = self.configured


def equilibrium_layers(model: nn.Module) -> list[EquilibriumLayer]:
    """Returns the equilibrium layers of a model, in the order of its modules."""
    return [
        module for module in model.modules() if isinstance(module, EquilibriumLayer)
    ]


def _note_mode(
    layer: EquilibriumLayer, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    """Writes the mode into the metadata of a state dict.

    It is a state dict hook, because mmengine collects state dicts by a function of its
    own that calls nothing but the hooks.
    """
    local_metadata['unrolled'] = isinstance(layer._mode, Unrolled)  # noqa: SLF001
