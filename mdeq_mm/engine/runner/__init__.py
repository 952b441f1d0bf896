from .multi_task_loops import MultiTaskTestLoop, MultiTaskTrainLoop, MultiTaskValLoop
from .task_config import task_config

__all__ = [
    'MultiTaskTestLoop',
    'MultiTaskTrainLoop',
    'MultiTaskValLoop',
    'task_config',
]
