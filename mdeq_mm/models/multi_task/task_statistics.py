"""Running statistics of a shared backbone that belong to one task."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torch import nn

_NAMES = ('running_mean', 'running_var', 'num_batches_tracked')

# The norms of the backbone can hold the statistics of one task at a time.
_SWITCHED = threading.RLock()


class TaskStatistics(nn.Module):
    """Holds running statistics of the norms of a backbone for one task.

    In training, batch norm normalises a batch by the statistics of this batch, which
    are those of one task. In inference it needs the running statistics of the same
    images, and not of those of all tasks. Chang et al., "Domain-Specific Batch
    Normalization for Unsupervised Domain Adaptation", CVPR 2019, keep them apart, and
    the affine parameters too. Here the tasks share all parameters.

    Args:
        backbone (nn.Module): The backbone. The statistics begin as its own.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        for number, norm in enumerate(_norms(backbone)):
            for name in _NAMES:
                self.register_buffer(f'{name}_{number}', getattr(norm, name).clone())

    @contextlib.contextmanager
    def used_by(self, backbone: nn.Module) -> Iterator[None]:
        """Lets the norms of the backbone use and update these statistics meanwhile.

        Other threads that want the statistics of a task wait.

        Args:
            backbone (nn.Module): The backbone.
        """
        with _SWITCHED:
            places = [
                (norm, name, f'{name}_{number}')
                for number, norm in enumerate(_norms(backbone))
                for name in _NAMES
            ]
            own = [getattr(norm, name) for norm, name, _ in places]
            for norm, name, mine in places:
                setattr(norm, name, getattr(self, mine))
            try:
                yield
            finally:
                for (norm, name, mine), buffer in zip(places, own):
                    setattr(self, mine, getattr(norm, name))
                    setattr(norm, name, buffer)

    def copy_from(self, backbone: nn.Module) -> None:
        """Takes over the statistics of the backbone itself."""
        for number, norm in enumerate(_norms(backbone)):
            for name in _NAMES:
                getattr(self, f'{name}_{number}').copy_(getattr(norm, name))

    def copy_to(self, backbone: nn.Module) -> None:
        """Makes these statistics those of the backbone itself."""
        for number, norm in enumerate(_norms(backbone)):
            for name in _NAMES:
                getattr(norm, name).copy_(getattr(self, f'{name}_{number}'))


def _norms(backbone: nn.Module) -> list[nn.Module]:
    """Returns the norms with running statistics. Wrappers do not change the order."""
    return [
        module
        for module in backbone.modules()
        if getattr(module, 'running_mean', None) is not None
    ]
