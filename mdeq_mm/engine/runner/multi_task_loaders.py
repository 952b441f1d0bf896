"""Data loaders of several tasks, which a loop of mmengine takes for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Optional

from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class MultiTaskLoader:
    """Base of the data loaders of several tasks.

    Args:
        loaders (dict[str, DataLoader]): The data loader of each task.

    Attributes:
        dataset (SimpleNamespace): Has as ``metainfo`` that of the data sets, by task.
            mmengine writes it into checkpoints.
    """

    def __init__(self, loaders: Mapping[str, DataLoader]) -> None:
        self.loaders = dict(loaders)
        metainfo = {
            task: getattr(loader.dataset, 'metainfo', {})
            for task, loader in self.loaders.items()
        }
        self.dataset = SimpleNamespace(metainfo=metainfo)


class JointLoader(MultiTaskLoader):
    """Yields a batch of every task at once, without end.

    Each task goes through its own data, and begins them anew when they are used up. The
    length is that of the longest data loader.

    Args:
        loaders (dict[str, DataLoader]): The data loader of each task.

    Raises:
        ValueError: If a task has no batch.
    """

    def __init__(self, loaders: Mapping[str, DataLoader]) -> None:
        super().__init__(loaders)
        for task, loader in self.loaders.items():
            if not len(loader):
                raise ValueError(
                    f'every task must have a batch to train on, {task} has none'
                )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterators = {task: _endless(loader) for task, loader in self.loaders.items()}
        while True:
            yield {task: next(iterator) for task, iterator in iterators.items()}

    def __len__(self) -> int:
        return max(len(loader) for loader in self.loaders.values())


class SequentialLoader(MultiTaskLoader):
    """Yields the batches of one task after those of another."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for task, loader in self.loaders.items():
            for batch in loader:
                yield {task: batch}

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())


def build_loaders(
    runner: Runner, cfg: Any, where: str, scopes: Mapping[str, Optional[str]]
) -> dict[str, DataLoader]:
    """Builds the data loader of each task as mmengine does.

    Args:
        runner (Runner): The runner.
        cfg (dict[str, dict]): Config of the data loader of each task.
        where (str): What the config is, for the error.
        scopes (dict[str, str]): The toolbox of each task of the model.

    Raises:
        TypeError: If it is no dict of data loaders.
        ValueError: If it has a task that the model does not have.
    """
    if not isinstance(cfg, Mapping) or not all(
        isinstance(loader, Mapping) and 'dataset' in loader for loader in cfg.values()
    ):
        raise TypeError(
            f'{where} must be a dict with a data loader per task, got {cfg}'
        )
    unknown = [task for task in cfg if task not in scopes]
    if unknown or not cfg:
        raise ValueError(
            f'{where} must have tasks of the model, {", ".join(scopes)}, '
            f'got {", ".join(cfg) or "none"}'
        )
    # As BaseLoop does it. Runner has no public name for it.
    randomness = getattr(runner, '_randomness_cfg', {})
    diff_rank_seed = randomness.get('diff_rank_seed', False)
    loaders = {}
    for task, loader in cfg.items():
        with DefaultScope.overwrite_default_scope(scopes[task]):
            loaders[task] = runner.build_dataloader(
                loader, seed=runner.seed, diff_rank_seed=diff_rank_seed
            )
    return loaders


def _endless(loader: DataLoader) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from loader
        epoch += 1
        # A batch sampler of a config holds the sampler that a plain loader has itself.
        for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
            set_epoch = getattr(sampler, 'set_epoch', None)
            if set_epoch is not None:
                set_epoch(epoch)
