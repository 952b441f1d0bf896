"""What the hooks around equilibrium layers have in common."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Callable, NamedTuple, Optional, cast

from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deq import EquilibriumLayer, ForwardPass, equilibrium_layers


class EquilibriumHook(Hook):
    """Base of the hooks that observe equilibrium layers or change their settings.

    A hook of this kind enters whatever it begins, the handle of an observer or an
    override by :meth:`EquilibriumLayer.using`, into one of two scopes, and ends nothing
    by hand. If an exception keeps mmengine from calling the end of an iteration or of
    the training, the scope is closed where the next one begins, or when the hook is
    garbage collected.

    A subclass that overrides a method below calls it by ``super()``: first where
    something begins, last where it ends.

    Attributes:
        run_scope (ExitStack): Holds what lasts from ``before_train`` to
            ``after_train``.
        iteration_scope (ExitStack): Holds what lasts for one iteration of training,
            validation or test.
    """

    def __init__(self) -> None:
        self.run_scope = ExitStack()
        self.iteration_scope = ExitStack()
        finalizer = weakref.finalize(self, _close, self.iteration_scope, self.run_scope)
        # At the end of the process there is nothing left to restore.
        finalizer.atexit = False

    def layers(self, model: nn.Module) -> list[EquilibriumLayer]:
        """Returns the equilibrium layers of a model.

        Raises:
            ValueError: If it has none.
        """
        return find_layers(model, type(self).__name__)

    def before_run(self, runner: Runner) -> None:
        """Ends what an interrupted run has left behind."""
        _close(self.iteration_scope, self.run_scope)

    def before_train(self, runner: Runner) -> None:
        """Begins the training."""
        _close(self.iteration_scope, self.run_scope)

    def after_train(self, runner: Runner) -> None:
        """Ends the training."""
        _close(self.iteration_scope, self.run_scope)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Begins a training iteration."""
        self.iteration_scope.close()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Ends a training iteration."""
        self.iteration_scope.close()

    def before_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Begins a validation iteration."""
        self.iteration_scope.close()

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Ends a validation iteration."""
        self.iteration_scope.close()

    def before_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Begins a test iteration."""
        self.iteration_scope.close()

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Ends a test iteration."""
        self.iteration_scope.close()


class ModelCall(NamedTuple):
    """A call of the model that returns losses.

    Attributes:
        model (BaseModel): The model, without the wrapper of several processes.
        args (tuple): Positional arguments of the call.
        kwargs (dict): Keyword arguments of the call.
    """

    model: BaseModel
    args: tuple
    kwargs: dict

    def repeat(self) -> dict[str, Any]:
        """Runs the model once more on the same arguments and returns its losses.

        The hooks that are registered on the model itself are not called.
        """
        return self.model.forward(*self.args, **self.kwargs)


class ExtraLossHook(EquilibriumHook, ABC):
    """Base of the hooks that add a loss to those of a stock model.

    The loss enters where the model returns its losses as a dict. Loss scaling, gradient
    accumulation, several processes and the log therefore treat it as any other.

    A subclass calls :meth:`open` in ``before_train_iter``. Until that iteration ends,
    each call of the model shows its forward passes to :meth:`observe` and asks
    :meth:`loss` for the loss. Calls of the model outside an iteration add nothing.
    """

    # After ImplicitGradientHook, which decides on the mode of the layers.
    priority = 'BELOW_NORMAL'

    loss_name: str

    def __init__(self) -> None:
        super().__init__()
        # What is kept of each call of the model that has not returned yet.
        self._kept: list[list[Any]] = []

    def open(self, model: nn.Module, layers: Iterable[EquilibriumLayer]) -> None:
        """Lets the loss in for the rest of the iteration.

        Args:
            model (nn.Module): The model of the runner.
            layers (Iterable[EquilibriumLayer]): The layers to observe.
        """
        model = unwrapped(model)
        enter = self.iteration_scope.enter_context
        self.iteration_scope.callback(self._kept.clear)
        enter(model.register_forward_pre_hook(weakly(self._begin_call)))
        for layer in layers:
            enter(layer.register_pass_hook(weakly(self._observe_pass)))
        enter(
            model.register_forward_hook(
                weakly(self._end_call), with_kwargs=True, always_call=True
            )
        )

    @abstractmethod
    def observe(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> Any:
        """Returns what to keep of a forward pass, or None for nothing."""

    @abstractmethod
    def loss(self, kept: list[Any], call: ModelCall) -> Optional[Tensor]:
        """Returns the loss of one call of the model, or None for none.

        Args:
            kept (list): What :meth:`observe` has returned for the passes of this call,
                in their order; at least one thing.
            call (ModelCall): The call.
        """

    def _begin_call(self, model: nn.Module, args: tuple) -> None:
        self._kept.append([])

    def _observe_pass(self, layer: EquilibriumLayer, forward_pass: ForwardPass) -> None:
        if not self._kept:  # a pass outside a call of the model
            return
        kept = self.observe(layer, forward_pass)
        if kept is not None:
            self._kept[-1].append(kept)

    def _end_call(
        self, model: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> Optional[dict]:
        kept = self._kept.pop() if self._kept else []
        # A call that predicts, or has raised an exception, returns no dict.
        if not kept or not isinstance(output, dict):
            return None
        loss = self.loss(kept, ModelCall(model, args, kwargs))
        return None if loss is None else {**output, self.loss_name: loss}


def find_layers(model: nn.Module, who: str) -> list[EquilibriumLayer]:
    """Returns the equilibrium layers of a model.

    Args:
        model (nn.Module): The model.
        who (str): Name of what needs them; the error names it.

    Raises:
        ValueError: If it has none.
    """
    layers = equilibrium_layers(model)
    if not layers:
        raise ValueError(
            f'{who} needs a model with an EquilibriumLayer, such as '
            f"backbone=dict(type='MDEQ'); {type(unwrapped(model)).__name__} has none"
        )
    return layers


def is_trained(layer: EquilibriumLayer, forward_pass: ForwardPass) -> bool:
    """Whether a forward pass in training mode is differentiated.

    That holds for a frozen layer, too, if what stands before it is trained.
    """
    return layer.training and forward_pass.state.requires_grad


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns a model without the wrapper of several processes."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that calls a bound method as long as its object lives.

    It is what hooks register on modules. Through a bound method the model would keep
    the hook alive, and a copy of the model would copy the hook.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = reference()
        return None if bound is None else bound(*args, **kwargs)

    return call


def _close(*scopes: ExitStack) -> None:
    for scope in scopes:
        scope.close()
