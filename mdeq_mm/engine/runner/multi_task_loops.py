"""Loops over the data of several tasks, which stock OpenMMLab lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import LOOPS, DefaultScope
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner, autocast

from ...models import MultiTaskModel
from ..hooks.base import unwrapped
from .multi_task_loaders import JointLoader, SequentialLoader, build_loaders


@LOOPS.register_module()
class MultiTaskTrainLoop(IterBasedTrainLoop):
    """Trains a :class:`MultiTaskModel`: every iteration has a batch of each task.

    It is the stock loop by iterations on one data loader per task. Each is built as
    mmengine builds it, with a data set, a sampler, a batch size and workers of its own.

    Args:
        runner (Runner): The runner.
        dataloader (dict[str, dict]): Config of the data loader of each task.
        **kwargs (Any): As :class:`IterBasedTrainLoop`.

    Raises:
        TypeError: If the data loaders are not given by task, or the model is no
            :class:`MultiTaskModel`.
        ValueError: If the tasks are not those of the model.

    Examples:
        >>> train_cfg = dict(type='MultiTaskTrainLoop', max_iters=1000)
        >>> train_dataloader = dict(
        ...     objects=dict(batch_size=64, num_workers=2, dataset=..., sampler=...),
        ...     streets=dict(batch_size=8, num_workers=2, dataset=..., sampler=...),
        ... )
    """

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        scopes = _scopes_of(runner)
        loaders = build_loaders(runner, dataloader, 'train_dataloader', scopes)
        missing = [task for task in scopes if task not in loaders]
        if missing:
            raise ValueError(
                'train_dataloader must have every task of the model, it lacks '
                f'{", ".join(missing)}'
            )
        super().__init__(runner, JointLoader(loaders), **kwargs)


@LOOPS.register_module()
class MultiTaskValLoop(BaseLoop):
    """Validates a :class:`MultiTaskModel`, one task after the other.

    To the hooks, all tasks are one validation. The names of metrics have the task as a
    prefix, such as ``streets/mIoU``, also for ``save_best`` of the checkpoint hook.

    Args:
        runner (Runner): The runner.
        dataloader (dict[str, dict]): Config of the data loader of each task. A task of
            the model may be left out.
        evaluator (dict[str, dict or list]): Metrics of each task.
        fp16 (bool): Whether to predict under autocast. Defaults to False.

    Attributes:
        evaluators (dict[str, Evaluator]): The evaluator of each task.
        evaluator (Evaluator): The metrics of all tasks, for hooks that look for them.

    Raises:
        TypeError: If the data loaders or the metrics are not given by task, or the
            model is no :class:`MultiTaskModel`.
        ValueError: If the tasks are not tasks of the model, or not the same in both.

    Examples:
        >>> val_cfg = dict(type='MultiTaskValLoop')
        >>> val_dataloader = dict(
        ...     objects=dict(batch_size=64, num_workers=2, dataset=..., sampler=...),
        ...     streets=dict(batch_size=8, num_workers=2, dataset=..., sampler=...),
        ... )
        >>> val_evaluator = dict(
        ...     objects=dict(type='Accuracy'), streets=dict(type='IoUMetric')
        ... )
    """

    stage = 'val'

    def __init__(
        self, runner: Runner, dataloader: Any, evaluator: Any, fp16: bool = False
    ) -> None:
        scopes = _scopes_of(runner)
        loaders = build_loaders(runner, dataloader, f'{self.stage}_dataloader', scopes)
        if not isinstance(evaluator, Mapping) or set(evaluator) != set(loaders):
            raise ValueError(
                f'{self.stage}_evaluator must be a dict with metrics per task of '
                f'{self.stage}_dataloader, {", ".join(loaders)}, got {evaluator}'
            )
        super().__init__(runner, SequentialLoader(loaders))
        self.evaluators: dict[str, Evaluator] = {}
        for task, metainfo in self.dataloader.dataset.metainfo.items():
            with DefaultScope.overwrite_default_scope(scopes[task]):
                self.evaluators[task] = runner.build_evaluator(evaluator[task])
            self.evaluators[task].dataset_meta = metainfo
        self.evaluator = Evaluator(
            [metric for one in self.evaluators.values() for metric in one.metrics]
        )
        self.fp16 = fp16

    def run(self) -> dict[str, Any]:
        """Evaluates the model.

        Returns:
            dict[str, Any]: The metrics of all tasks.
        """
        self._call_hooks('before_{}')
        self._call_hooks('before_{}_epoch')
        self.runner.model.eval()
        for batch_idx, batch in enumerate(self.dataloader):
            ((task, data_batch),) = batch.items()
            self.run_iter(batch_idx, task, data_batch)
        metrics = {}
        for task, loader in self.dataloader.loaders.items():
            results = self.evaluators[task].evaluate(len(loader.dataset))
            metrics.update({f'{task}/{name}': v for name, v in results.items()})
        self._call_hooks('after_{}_epoch', metrics=metrics)
        self._call_hooks('after_{}')
        return metrics

    @torch.no_grad()
    def run_iter(self, batch_idx: int, task: str, data_batch: Any) -> None:
        """Predicts a batch of one task.

        Args:
            batch_idx (int): Number of the batch among those of all tasks, from 0.
            task (str): The task.
            data_batch (Any): The batch, as hooks and metrics of the toolbox know it.
        """
        self._call_hooks('before_{}_iter', batch_idx=batch_idx, data_batch=data_batch)
        step = getattr(self.runner.model, f'{self.stage}_step')
        with autocast(enabled=self.fp16):
            outputs = step({task: data_batch})[task]
        self.evaluators[task].process(data_samples=outputs, data_batch=data_batch)
        self._call_hooks(
            'after_{}_iter',
            batch_idx=batch_idx,
            data_batch=data_batch,
            outputs=outputs,
        )

    def _call_hooks(self, point: str, **kwargs: Any) -> None:
        self.runner.call_hook(point.format(self.stage), **kwargs)


@LOOPS.register_module()
class MultiTaskTestLoop(MultiTaskValLoop):
    """Tests a :class:`MultiTaskModel` as :class:`MultiTaskValLoop` validates it."""

    stage = 'test'


def _scopes_of(runner: Runner) -> dict[str, Any]:
    """Returns the tasks of the model with their toolboxes."""
    model = unwrapped(runner.model)
    if not isinstance(model, MultiTaskModel):
        raise TypeError(
            f'a multi-task loop needs a MultiTaskModel, got {type(model).__name__}'
        )
    return model.scopes
