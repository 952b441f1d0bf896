"""The config of one task, out of that of several."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from mmengine.config import Config

# What is for training, or for the training of all tasks.
LEFT_OUT = {
    'auto_scale_lr',
    'load_from',
    'model',
    'optim_wrapper',
    'param_scheduler',
    'resume',
    'train_cfg',
    'train_dataloader',
    'work_dir',
}
LOOPS = dict(val='ValLoop', test='TestLoop')


def task_config(cfg: Config, task: str) -> Config:
    """Cuts the config of one task out of that of a :class:`MultiTaskModel`.

    The model is the stock model of the task with the backbone of all, the default scope
    is its toolbox, and it is validated and tested by the stock loops on its own data.
    How the tasks were trained is left out.

    Args:
        cfg (Config): The config of all tasks. It is not changed.
        task (str): Name of the task.

    Returns:
        Config: The config of the task, for the stock tools.

    Raises:
        ValueError: If it is no config of a :class:`MultiTaskModel`, or has no such
            task.
    """
    whole: Any = deepcopy(cfg.to_dict())
    kind = whole.get('model', {}).get('type')
    if 'MultiTaskModel' not in (kind, getattr(kind, '__name__', None)):
        raise ValueError(f'the model must be a MultiTaskModel, got {kind}')
    tasks = whole['model']['tasks']
    if task not in tasks:
        raise ValueError(f'task must be one of {", ".join(tasks)}, got {task}')
    model, backbone = tasks[task], whole['model']['backbone']
    common = whole.get('default_scope', 'mmengine')
    scope = model.pop('_scope_', common)
    if common not in ('mmengine', scope):
        # Without a prefix the types of the backbone are those of the common scope.
        backbone.setdefault('_scope_', common)
    single = {key: value for key, value in whole.items() if key not in LEFT_OUT}
    single.update(default_scope=scope, model=dict(model, backbone=backbone))
    single.get('default_hooks', {}).pop('checkpoint', None)
    for stage, loop in LOOPS.items():
        names = f'{stage}_dataloader', f'{stage}_evaluator'
        parts = [(single.pop(name, None) or {}).get(task) for name in names]
        settings = single.pop(f'{stage}_cfg', None)
        if all(parts):
            single.update(zip(names, parts))
            single[f'{stage}_cfg'] = dict(settings, type=loop)
    return Config(single)
