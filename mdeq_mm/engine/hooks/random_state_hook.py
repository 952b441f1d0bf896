"""Random generators as part of the checkpoint, which stock OpenMMLab lacks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Callable, Optional, cast

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Makes a resumed run draw the random numbers an uninterrupted one would.

    This hook has nothing to do with equilibria. Stock OpenMMLab does not store the
    state of the random generators in its checkpoints, so a run that is resumed there
    ends with other weights than one that was never interrupted.

    Dropout masks and augmentation depend on the generators of Python, numpy and torch.
    The hook stores their states, those of every process, in each checkpoint, restores
    them on resuming at the point where the next batch is fetched, and keeps validation
    from advancing them.

    Worker processes of a data loader have generators of their own, which mmengine seeds
    when they start. A resumed run repeats them exactly in an ``IterBasedTrainLoop``; in
    an ``EpochBasedTrainLoop`` it does if the workers start anew every epoch
    (``persistent_workers=False``) and the checkpoint was written at the end of one.
    For that the batches before are loaded again. OneDL's mmengine has a setting of the
    loop, ``fast_forward_on_resume=True``, that skips this; the run is then another one.

    Examples:
        >>> default_hooks = dict(random_state=dict(type='RandomStateHook'))
    """

    # States of several processes are gathered before CheckpointHook (VERY_LOW) saves.
    priority = 'LOW'

    KEY = 'random_states'

    def __init__(self) -> None:
        self._gathered: Optional[list[dict]] = None
        self._before_val: Optional[list[dict]] = None
        self._loaded: Optional[list[dict]] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remembers the states until training starts."""
        self._loaded = checkpoint.get(self.KEY)

    def before_train_epoch(self, runner: Runner) -> None:
        """Restores the states of the checkpoint that is resumed from."""
        states, self._loaded = self._loaded, None
        if runner.iter == 0 or states is None:
            return
        if len(states) != get_world_size():
            runner.logger.warning(
                'the checkpoint holds the random states of %d processes; this run has '
                '%d, so its random numbers will differ',
                len(states),
                get_world_size(),
            )
            return
        state = states[get_rank()]
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            # The loop first skips the batches that were trained on, which draws random
            # numbers again; the states belong behind that. OneDL's loop may skip none.
            n_skipped = (
                0 if getattr(loop, 'fast_forward_on_resume', False) else loop.iter
            )
            loop.dataloader_iterator = _CallAfter(
                loop.dataloader_iterator, n_skipped, lambda: _set_states(state)
            )
        else:
            _set_states(state)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all processes if a checkpoint is about to be saved."""
        self._gathered = self._gather(runner, by_epoch=False)

    def after_train_epoch(self, runner: Runner) -> None:
        """Gathers the states of all processes if a checkpoint is about to be saved."""
        self._gathered = self._gather(runner, by_epoch=True)

    def before_val(self, runner: Runner) -> None:
        """Keeps the states, so that validation does not change training."""
        self._before_val = _gather_states()

    def after_val(self, runner: Runner) -> None:
        """Restores the states from before validation."""
        if self._before_val is not None:
            _set_states(self._before_val[get_rank()])
            self._before_val = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the states to the checkpoint."""
        checkpoint[self.KEY] = self._before_val or self._gathered or [_get_states()]

    @staticmethod
    def _gather(runner: Runner, by_epoch: bool) -> Optional[list[dict]]:
        # Saving is the main process's alone, too late to gather.
        if get_world_size() == 1:
            return None
        for hook in runner.hooks:
            if not isinstance(hook, CheckpointHook) or hook.by_epoch != by_epoch:
                continue
            if by_epoch:
                due = hook.every_n_epochs(runner, hook.interval, hook.save_begin)
                last = hook.is_last_train_epoch(runner)
            else:
                due = hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
                last = hook.is_last_train_iter(runner)
            if due or (last and hook.save_last):
                return _gather_states()
        return None


class _CallAfter:
    """An iterator that makes one call after so many items."""

    def __init__(self, iterator: Iterator, n_items: int, call: Callable) -> None:
        self._iterator = iterator
        self._n_left = n_items
        self._call = call

    def __iter__(self) -> _CallAfter:
        return self

    def __next__(self) -> Any:
        if self._n_left == 0:
            self._call()
        self._n_left -= 1
        return next(self._iterator)

    def skip_iter(self, n_items: int) -> None:
        """Skips items, as OneDL's loop asks of its iterator.

        Its own iterator may move the sampler and load nothing. Workers would then begin
        with other random numbers, so each item is loaded here.
        """
        for _ in range(n_items):
            next(self)


def _gather_states() -> list[dict]:
    return all_gather_object(_get_states())


def _get_states() -> dict:
    """Returns the states as numbers, tuples and tensors, which torch loads safely."""
    state = cast(tuple[Any, ...], np.random.get_state())
    kind, keys, position, has_gauss, gauss = state
    return dict(
        python=random.getstate(),
        numpy=(kind, keys.tolist(), position, has_gauss, gauss),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def _set_states(states: dict) -> None:
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['torch'].cpu())
    if states['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())
