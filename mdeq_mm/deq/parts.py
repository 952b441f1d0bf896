"""Parts of cells that hold a tensor during a solve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    register_parametrization,
    remove_parametrizations,
)

from .autocast import autocast_dtype
from .cell import FreezablePart, Frozen


class VariationalDropout(FreezablePart):
    """Dropout of whole channels whose mask stays the same during a solve.

    The mask is drawn once per solve, sample and channel, and scaled by ``1 / (1 - p)``
    (Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks", 2016). Outside of a frozen cell, and in evaluation mode, the part
    is the identity.

    Args:
        p (float): Probability that a channel is dropped, in [0, 1).
        channels (int): Channels of the input ``(B, channels, ...)``.

    Raises:
        ValueError: If ``p`` is out of its range.
    """

    def __init__(self, p: float, channels: int) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f'dropout must be in [0, 1), got {p!r}')
        self.p = p
        self.channels = channels

    def draw(self, injections: Sequence[Tensor]) -> Optional[Tensor]:
        """Returns a new mask ``(B, channels)`` in training with ``p > 0``."""
        if not self.training or self.p == 0:
            return None
        x = injections[0]
        keep = 1 - self.p
        mask = torch.empty(len(x), self.channels, device=x.device, dtype=x.dtype)
        return mask.bernoulli_(keep).div_(keep)

    def select(self, held: Tensor, rows: Tensor) -> Tensor:
        """Returns the masks of some samples."""
        return held[rows]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the mask that is held to ``x``, ``(B, channels, ...)``."""
        mask = self.held
        if mask is None:
            return x
        return x * mask.view(*mask.shape, *[1] * (x.dim() - 2)).to(x.dtype)

    def extra_repr(self) -> str:
        """Describes the settings."""
        return f'p={self.p}, channels={self.channels}'


class _FreezableParametrization(ParametrizationList, FreezablePart):
    """A parametrization whose tensor is computed once per solve."""

    def draw(self, injections: Sequence[Tensor]) -> Tensor:
        # Here and not at the first use. The first use is in the solve, under no_grad,
        # and would leave the parameters without a gradient.
        weight = ParametrizationList.forward(self)
        dtype = autocast_dtype(injections[0].device.type)
        if dtype is None or weight.dtype == torch.float64:
            # Autocast leaves float64 alone.
            return weight
        # Otherwise autocast would cast the weight in every evaluation.
        return weight.to(dtype=dtype)

    def reduce(self, held: Tensor, dtype: torch.dtype) -> Tensor:
        return held.to(dtype)

    def forward(self) -> Tensor:
        held = self.held
        return ParametrizationList.forward(self) if held is None else held


def freezable_weight_norm(module: nn.Module) -> nn.Module:
    """Normalises the weight of a module per output channel.

    It is ``torch.nn.utils.parametrizations.weight_norm`` with the same keys in the
    state dict. In a frozen cell the weight is computed once per solve.

    Args:
        module (nn.Module): A module with a ``weight``, such as a convolution; changed
            in place.

    Returns:
        nn.Module: The module.
    """
    # Not on the module itself: torch would leave a hook there that cannot be pickled.
    pattern = nn.Module()
    pattern.weight = module.weight
    weight_norm(pattern)
    (normalization,) = _parametrization(pattern)
    # As torch does for weight_norm itself, `unsafe` leaves out a check that evaluates
    # the norm, which torch 2.1 cannot do on the meta device.
    register_parametrization(module, 'weight', normalization, unsafe=True)
    parametrizations = cast(nn.ModuleDict, module.parametrizations)
    # original1 is the weight before; its norms are computed from it once more.
    weight = cast(nn.Parameter, _parametrization(module).original1)
    parametrizations['weight'] = _FreezableParametrization(
        [normalization], weight, unsafe=True
    )
    module._register_load_state_dict_pre_hook(_rename_older_keys)  # noqa: SLF001
    return module


def weight_norm_gains(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the gains of the normalised weights at any depth of a module.

    A weight is ``g v / ||v||`` per output channel; ``g`` is the gain. Both ways of
    torch to normalise weights are known.
    """
    for part in module.modules():
        if isinstance(part, ParametrizationList):
            if type(part[0]).__name__ == '_WeightNorm':  # which torch does not publish
                yield cast(nn.Parameter, part.original0)
        elif hasattr(part, 'weight_g') and hasattr(part, 'weight_v'):
            yield cast(nn.Parameter, part.weight_g)


def _rename_older_keys(state_dict: dict, prefix: str, *args: Any) -> None:
    """Lets a module read what torch.nn.utils.weight_norm, the older one, has saved."""
    older, newer = ('weight_g', 'weight_v'), ('original0', 'original1')
    if all(f'{prefix}{key}' in state_dict for key in older):
        for old, new in zip(older, newer):
            weight = state_dict.pop(f'{prefix}{old}')
            state_dict[f'{prefix}parametrizations.weight.{new}'] = weight


@contextmanager
def assignable_weights(module: nn.Module) -> Iterator[None]:
    """Lets changes in place of normalised weights last, such as those of ``init_cfg``.

    Otherwise a change in place is one of a tensor that is computed anew at each use.

    Args:
        module (nn.Module): The module, at any depth of which weights may be normalised.
    """
    owners = [
        owner
        for owner in module.modules()
        if is_parametrized(owner, 'weight')
        and isinstance(_parametrization(owner), _FreezableParametrization)
    ]
    before = [cast(Tensor, owner.weight).detach() for owner in owners]
    after = [weight.clone() for weight in before]
    with Frozen(dict(zip(map(_parametrization, owners), after))):
        yield
    for owner, old, new in zip(owners, before, after):
        if not torch.equal(old, new):
            owner.weight = new
            _keep_directions(_parametrization(owner), old)


def _keep_directions(parametrization: Any, before: Tensor) -> None:
    """Lets weights of norm 0 keep the direction that they had: zeros have none."""
    norm, weight = parametrization.original0, parametrization.original1
    with torch.no_grad():
        weight.copy_(torch.where(norm == 0, before, weight))


def fold_parametrizations(module: nn.Module) -> None:
    """Makes plain weights of parametrized ones, at any depth of a module.

    Args:
        module (nn.Module): The module, changed in place.
    """
    for owner in list(module.modules()):
        if not is_parametrized(owner):
            continue
        # torch deletes the property from the class, which deep copies of the model
        # share. So the module first gets a class of its own.
        cls = type(owner)
        owner.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
        for name in list(cast(nn.ModuleDict, owner.parametrizations)):
            remove_parametrizations(owner, name)


def _parametrization(module: nn.Module) -> Any:
    return cast(nn.ModuleDict, module.parametrizations)['weight']
