"""Stock models of several tasks on one backbone, which stock OpenMMLab lacks."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Optional, cast

from mmengine.model import BaseDataPreprocessor, BaseModel, ModuleDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...deq.checks import check_number
from .task_statistics import TaskStatistics


@MODELS.register_module()
class MultiTaskModel(BaseModel):
    """Trains stock models of several tasks that share one backbone.

    This model has nothing to do with equilibria: any backbone will do, and any models
    of the toolboxes that call ``self.backbone``. Each task has images, a data
    preprocessor and heads of its own. For several labels of one image MMPretrain has
    ``MultiTaskHead`` and ``MultiTaskDataset``.

    Data are dicts with one batch per task, as :class:`MultiTaskTrainLoop` and
    :class:`MultiTaskValLoop` give them; losses and predictions come back by task. The
    backbone runs once per batch. Names of losses get the task as a prefix:
    ``digits/loss``, ``scenes/decode.loss_ce``.

    The parameters of the backbone are registered once. The keys of the state dict are
    ``backbone.*``, ``tasks.<name>.*`` and ``statistics.<name>.*``. A model of a task
    finds the backbone by a stand-in without parameters. :meth:`extract` makes a stock
    model of it.

    The norms of the backbone have running statistics for each task, see
    :class:`TaskStatistics`. Those in ``backbone.*`` stay as they were initialised.

    Args:
        backbone (dict): Config of the backbone.
        tasks (dict[str, dict]): Config of the model of each task, without a backbone.
            ``_scope_`` in it names the toolbox of the model, its data and its metrics.
        loss_weights (dict[str, float], optional): What the losses of a task are
            multiplied by, not negative. Defaults to None, 1 for each task.
        init_cfg (dict, optional): See :class:`BaseModel`. Defaults to None.

    Attributes:
        scopes (dict[str, str]): ``_scope_`` of each task, None where it has none.

    Raises:
        TypeError: If ``tasks`` is no dict of dicts.
        ValueError: If a name of a task is not allowed, a task has a backbone of its
            own, or ``loss_weights`` does not fit.

    Examples:
        >>> model = dict(
        ...     type='MultiTaskModel',
        ...     backbone=dict(type='MDEQ', arch='small'),
        ...     tasks=dict(
        ...         objects=dict(
        ...             type='ImageClassifier', _scope_='mmpretrain', neck=..., head=...
        ...         ),
        ...         streets=dict(
        ...             type='EncoderDecoder', _scope_='mmseg', decode_head=...
        ...         ),
        ...     ),
        ...     loss_weights=dict(streets=2.0),
        ... )
    """

    def __init__(
        self,
        backbone: dict,
        tasks: Mapping[str, dict],
        loss_weights: Optional[Mapping[str, float]] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        _check_tasks(tasks)
        weights = _check_weights(loss_weights or {}, tasks)
        super().__init__(_DataPreprocessors(self), init_cfg)
        self.loss_weights = weights
        self.scopes = {name: cfg.get('_scope_') for name, cfg in tasks.items()}
        self.backbone = MODELS.build(backbone)
        self.tasks = ModuleDict()
        for name, cfg in tasks.items():
            self.tasks[name] = MODELS.build({**cfg, 'backbone': dict(type=_Shared)})
        for module in self.tasks.modules():
            if isinstance(module, _Shared):
                module.owner = (self,)
        self.statistics = ModuleDict(
            {name: TaskStatistics(self.backbone) for name in tasks}
        )

    def init_weights(self) -> None:
        """Initialises the model; ``init_cfg`` may load statistics of the backbone."""
        is_first = not self.is_init  # a second training changes nothing
        super().init_weights()
        if is_first:
            for statistics in self.statistics.values():
                statistics.copy_from(self.backbone)

    def forward(self, data: dict[str, Any], mode: str = 'tensor') -> dict[str, Any]:
        """Runs the model of each task on its own batch.

        Args:
            data (dict[str, dict]): By task, what the data preprocessor of its model has
                made of a batch.
            mode (str): As in the models of the tasks: ``'tensor'``, ``'predict'`` or
                ``'loss'``. Defaults to ``'tensor'``.

        Returns:
            dict[str, Any]: By task, what its model returns. In mode ``'loss'`` one dict
            with the losses of all tasks.
        """
        outputs = {}
        for name, inputs in data.items():
            with self.statistics[name].used_by(self.backbone):
                outputs[name] = self.tasks[name](**inputs, mode=mode)
        if mode != 'loss':
            return outputs
        return {
            f'{name}/{key}': self._weighted(name, key, value)
            for name, losses in outputs.items()
            for key, value in losses.items()
        }

    def extract(self, task: str) -> BaseModel:
        """Returns the stock model of a task, with a backbone of its own.

        It is a copy: the model itself stays as it is.

        Args:
            task (str): Name of the task.

        Raises:
            ValueError: If there is no such task.
        """
        _check_known([task], self.tasks)
        whole = deepcopy(self)
        model = cast(BaseModel, whole.tasks[task])
        whole.statistics[task].copy_to(whole.backbone)
        model.backbone = whole.backbone
        return model

    def _weighted(self, task: str, key: str, value: Any) -> Any:
        if 'loss' not in key:  # what is logged alone, such as an accuracy
            return value
        weight = self.loss_weights[task]
        if isinstance(value, Tensor):
            return weight * value
        return [weight * part for part in value]


class _Shared(nn.Module):
    """Stands in for the backbone in the model of a task.

    It looks the backbone up with every call, so that it is always the one that the
    whole model has, also in a copy, in a wrapper, or where a hook replaces it.

    Attributes:
        owner (tuple[MultiTaskModel]): The whole model. In a tuple, because a module
            would be registered as a part of this one.
    """

    owner: tuple[MultiTaskModel]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner[0].backbone(*args, **kwargs)


class _DataPreprocessors(BaseDataPreprocessor):
    """Lets the model of each task preprocess its own batch."""

    def __init__(self, owner: MultiTaskModel) -> None:
        super().__init__()
        self.owner = (owner,)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        tasks = self.owner[0].tasks
        _check_known(data, tasks)
        return dict(
            data={
                name: tasks[name].data_preprocessor(batch, training)
                for name, batch in data.items()
            }
        )


def _check_tasks(tasks: Any) -> None:
    if not isinstance(tasks, Mapping) or not tasks:
        raise TypeError(f'tasks must be a dict with a model per name, got {tasks!r}')
    for name, cfg in tasks.items():
        # mmengine adds up all values whose names have "loss" in them.
        is_name = isinstance(name, str) and name.isidentifier() and 'loss' not in name
        if not is_name or hasattr(ModuleDict, name):
            raise ValueError(
                'a name in tasks must be an identifier of Python without "loss" in it, '
                f'and no attribute of a ModuleDict, got {name!r}'
            )
        if not isinstance(cfg, Mapping):
            raise TypeError(f'tasks.{name} must be a dict, got {cfg!r}')
        own = [key for key in ('backbone', 'pretrained') if cfg.get(key) is not None]
        if own:
            raise ValueError(
                f'tasks.{name} must have no {own[0]}: the backbone of all tasks, and '
                'its init_cfg, is an argument of the MultiTaskModel'
            )


def _check_weights(
    weights: Mapping[str, float], tasks: Mapping[str, Any]
) -> dict[str, float]:
    _check_known(weights, tasks)
    for name, weight in weights.items():
        check_number(f'loss_weights.{name}', weight, least=0)
    return {name: weights.get(name, 1.0) for name in tasks}


def _check_known(names: Any, tasks: Any) -> None:
    unknown = [name for name in names if name not in tasks]
    if unknown:
        raise ValueError(
            f'the tasks of the model are {", ".join(tasks)}, got {", ".join(unknown)}'
        )
